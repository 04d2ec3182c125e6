"""Measures how well an autoencoder reconstructs held-out images: metrics, verdicts, pictures."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Real, UInt8
from torch import Tensor

from autoencoder import Autoencoder
from autoencoder.training.latent_statistics import ChannelUse, measure_channel_use
from dataset.images.transform import normalize_pixels, to_pixels_like, to_uint8
from evaluation.reconstruction import SSIM_WINDOW, psnr, ssim
from foundation import collectives
from foundation.shapes import Images, PerImage

Pixels = Real[Tensor, "n c h w"]  # 0 to 255, or in [-1, 1] where files hold more than 8 bits
Perceptual = Callable[[Images, Images], PerImage]
Backbone = Literal["alex", "vgg", "squeeze"]
BACKBONES: dict[Backbone, str] = {
    "alex": "alexnet-owt-*.pth",
    "vgg": "vgg16-*.pth",
    "squeeze": "squeezenet1_1-*.pth",
}
MIN_LPIPS_SIZE = 32  # pixels; smaller images vanish on the way through the backbones


@dataclass(frozen=True)
class AutoencoderEvaluation:
    """What `ReconstructionEvaluator.evaluate` found."""

    metrics: dict[str, float]  # means over images: psnr in dB, ssim, held_out_lpips; KL by channel
    channels: ChannelUse
    # image, reconstruction, difference on gray of the first image; the same of the second; ...
    comparison: UInt8[Tensor, "three_n c h w"]


class ReconstructionEvaluator:
    """Evaluates autoencoders on the same images each time; the ranks share the images."""

    def __init__(
        self, pixels: Pixels, batch_size: int, device: torch.device, perceptual: Perceptual | None
    ):
        """perceptual: LPIPS, or None to leave that metric out."""
        self.pixels, self.batch_size = pixels, batch_size
        self.device, self.perceptual = device, perceptual

    @torch.no_grad()
    def evaluate(self, autoencoder: Autoencoder) -> AutoencoderEvaluation:
        """Encode and decode the most likely latents of every image."""
        values: dict[str, list[Tensor]] = {}
        comparisons, posteriors, count = [], [], len(self.pixels)
        for pixels in self.pixels[collectives.rank_rows(count)].split(self.batch_size):
            images = normalize_pixels(pixels.to(self.device))
            posterior = autoencoder.encode(images)
            decoded = autoencoder.decode(posterior.mode())
            reconstructed = to_pixels_like(decoded, pixels).cpu()
            posteriors.append(posterior)
            for name, numbers in self.measure(images, decoded, pixels, reconstructed).items():
                values.setdefault(name, []).append(numbers.cpu())
            comparisons.append(compare(pixels, reconstructed))
        metrics = {
            name: collectives.gather_rows(torch.cat(batches), count).mean().item()
            for name, batches in values.items()
        }
        use = measure_channel_use(posteriors)
        metrics |= {f"kl/channel{k}": value for k, value in enumerate(use.kl)}
        comparison = collectives.gather_rows(torch.cat(comparisons), count).flatten(0, 1)
        return AutoencoderEvaluation(metrics, use, comparison)

    def measure(
        self, images: Images, decoded: Images, pixels: Pixels, reconstructed: Pixels
    ) -> dict[str, Tensor]:
        """Return the metrics of each image.

        Args:
            images, decoded: in [-1, 1], on the device.
            pixels, reconstructed: the same in the numbers of the files, on the CPU.
        """
        metrics = {"psnr": psnr(pixels, reconstructed)}
        if min(pixels.shape[-2:]) >= SSIM_WINDOW:
            metrics["ssim"] = ssim(pixels, reconstructed)
        if self.perceptual is not None:
            metrics["held_out_lpips"] = self.perceptual(images, decoded.clamp(-1, 1))
        return metrics


def compare(pixels: Pixels, reconstructed: Pixels) -> UInt8[Tensor, "n 3 c h w"]:
    """Return image, reconstruction, and their halved difference, which is gray where they agree."""
    pixels, reconstructed = (
        to_uint8(normalize_pixels(numbers)) for numbers in (pixels, reconstructed)
    )
    difference = (reconstructed.float() - pixels.float()) / 2 + 127.5
    return torch.stack([pixels, reconstructed, difference.to(torch.uint8)], dim=1)


def find_backbones() -> list[Backbone]:
    """Return the backbones of LPIPS whose weights are in torch.hub's folder, the best first."""
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    return [net for net, pattern in BACKBONES.items() if any(folder.glob(pattern))]


def describe_missing_lpips(size: int) -> str:
    """Return why `find_perceptual_distance` finds none, and what to do."""
    if size < MIN_LPIPS_SIZE:
        return f"LPIPS needs images of at least {MIN_LPIPS_SIZE} pixels; these have {size}"
    from autoencoder.training.lpips import BACKBONES as WEIGHTS
    from autoencoder.training.lpips import backbone_file, hash_of_name

    file, weights = backbone_file("alex"), WEIGHTS["alex"]
    return (
        f"the weights of a backbone are missing: fetch {weights.url} "
        f"({weights.meta['_file_size']:.0f} MB; its sha256 begins with {hash_of_name(file)}) and "
        f"put it there: {file}. Nothing is downloaded unasked"
    )


def find_perceptual_distance(size: int, device: torch.device) -> Perceptual | None:
    """Return LPIPS if torch.hub's folder has the weights of a backbone; nothing is downloaded.

    size: side of the images in pixels.
    """
    nets = find_backbones()
    if not nets or size < MIN_LPIPS_SIZE:
        return None
    from autoencoder.training.lpips import PerceptualDistance  # imports lpips and torchvision

    return PerceptualDistance(nets[0], device)
