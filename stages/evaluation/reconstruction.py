"""How well an autoencoder reconstructs images: what trainings and `evaluate.py` measure alike."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float, Real, UInt8
from torch import Tensor

from autoencoder import Autoencoder
from dataset.images.transform import normalize_pixels, to_pixels_like, to_uint8
from evaluation.latents import LatentChannel, image_moments, latent_channels
from evaluation.reconstruction import SSIM_WINDOW, psnr, ssim
from foundation import collectives
from foundation.shapes import Images, Latents, PerImage

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
class Reconstruction:
    """Images that were encoded and decoded."""

    latents: Latents  # the most likely ones
    pixels: Real[
        Tensor, "b colors height width"
    ]  # decoded, in the numbers of the files, on the CPU
    moments: Float[Tensor, "b c 7"]  # of the latents, see `evaluation.latents`


@torch.no_grad()
def reconstruct(autoencoder: Autoencoder, pixels: Pixels, device: torch.device) -> Reconstruction:
    """Encode images, and decode their most likely latents, all at once."""
    posterior = autoencoder.encode(normalize_pixels(pixels.to(device)))
    latents = posterior.mode()
    decoded = to_pixels_like(autoencoder.decode(latents), pixels).cpu()
    return Reconstruction(latents, decoded, image_moments(posterior.mean, posterior.logvar))


@torch.no_grad()
def likeness(
    pixels: Pixels,
    others: Pixels,
    perceptual: Perceptual | None,
    batch_size: int,
    device: torch.device,
) -> dict[str, Tensor]:
    """Return how like each image and its other one are: psnr, ssim, and lpips if it is there.

    Args:
        pixels, others: on the CPU, in the numbers of the files.
        batch_size: images that LPIPS sees at once.
    """
    rows = {"psnr": psnr(pixels, others)}
    if min(pixels.shape[-2:]) >= SSIM_WINDOW:
        rows["ssim"] = ssim(pixels, others)
    if perceptual is not None:
        pairs = [normalize_pixels(x).split(batch_size) for x in (pixels, others)]
        found = [perceptual(x.to(device), y.to(device)).cpu() for x, y in zip(*pairs, strict=True)]
        rows["lpips"] = torch.cat(found)
    return rows


@dataclass(frozen=True)
class AutoencoderEvaluation:
    """What `ReconstructionEvaluator.evaluate` found."""

    metrics: dict[str, float]  # means over images: psnr in dB, ssim, held_out_lpips; KL by channel
    channels: list[LatentChannel]
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

    def evaluate(self, autoencoder: Autoencoder) -> AutoencoderEvaluation:
        """Encode and decode the most likely latents of every image."""
        values: dict[str, list[Tensor]] = {}
        for pixels in self.pixels[collectives.rank_rows(len(self.pixels))].split(self.batch_size):
            found = reconstruct(autoencoder, pixels, self.device)
            rows = self.likeness(pixels, found.pixels)
            rows |= {"moments": found.moments, "panels": compare(pixels, found.pixels)}
            for name, numbers in rows.items():
                values.setdefault(name, []).append(numbers)
        gathered = {
            name: collectives.gather_rows(torch.cat(parts), len(self.pixels))
            for name, parts in values.items()
        }
        channels = latent_channels(gathered.pop("moments"))
        panels = gathered.pop("panels").flatten(0, 1)
        metrics = {name: numbers.mean().item() for name, numbers in gathered.items()}
        if "lpips" in metrics:
            metrics["held_out_lpips"] = metrics.pop("lpips")  # beside that of the training images
        metrics |= {f"kl/channel{k}": channel.kl for k, channel in enumerate(channels)}
        return AutoencoderEvaluation(metrics, channels, panels)

    def likeness(self, pixels: Pixels, others: Pixels) -> dict[str, Tensor]:
        return likeness(pixels, others, self.perceptual, self.batch_size, self.device)


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
