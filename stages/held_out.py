"""How well an autoencoder does on images that were held out: numbers, pictures, words."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Real, UInt8
from torch import Tensor

from autoencoder import Autoencoder
from autoencoder.training.latent_statistics import ChannelUse, measure_channel_use
from dataset.images.transform import like, to_model, to_uint8
from evaluation.reconstruction import WINDOW, psnr, ssim
from foundation import collectives
from foundation.shapes import Images, PerImage

Pixels = Real[Tensor, "n c h w"]  # 0 to 255, or in [-1, 1] where files hold more than 8 bits
Perceptual = Callable[[Images, Images], PerImage]
BACKBONES = {"alex": "alexnet-owt-*.pth", "vgg": "vgg16-*.pth", "squeeze": "squeezenet1_1-*.pth"}


@dataclass(frozen=True)
class Judgement:
    numbers: dict[str, float]  # psnr in dB, ssim, lpips if its weights are at hand, KL by channel
    channels: ChannelUse
    # of each image: itself, the reconstruction, the difference on gray
    pictures: UInt8[Tensor, "n c h w"]


class HeldOut:
    """Images to judge by, as training would see them; shared out among the ranks."""

    def __init__(
        self, pixels: Pixels, batch_size: int, device: torch.device, perceptual: Perceptual | None
    ):
        self.pixels, self.batch_size = pixels, batch_size
        self.device, self.perceptual = device, perceptual

    @torch.no_grad()
    def judge(self, autoencoder: Autoencoder) -> Judgement:
        values: dict[str, list[Tensor]] = {}
        shown, posteriors, count = [], [], len(self.pixels)
        for pixels in self.pixels[collectives.rank_rows(count)].split(self.batch_size):
            images = to_model(pixels.to(self.device))
            posterior = autoencoder.encode(images)
            decoded = autoencoder.decode(posterior.mode())
            again = like(pixels, decoded).cpu()
            posteriors.append(posterior)
            for name, numbers in self.measure(images, decoded, pixels, again).items():
                values.setdefault(name, []).append(numbers.cpu())
            pixels, again = (to_uint8(to_model(numbers)) for numbers in (pixels, again))
            difference = (again.float() - pixels.float()) / 2 + 127.5  # gray where they agree
            shown.append(torch.stack([pixels, again, difference.to(torch.uint8)], dim=1))
        means = {
            name: collectives.gather_rows(torch.cat(parts), count).mean().item()
            for name, parts in values.items()
        }
        use = measure_channel_use(posteriors)
        means |= {f"kl/channel{k}": value for k, value in enumerate(use.kl)}
        return Judgement(means, use, collectives.gather_rows(torch.cat(shown), count).flatten(0, 1))

    def measure(
        self, images: Images, decoded: Images, pixels: Pixels, again: Pixels
    ) -> dict[str, Tensor]:
        """One number per image of each kind."""
        found = {"psnr": psnr(pixels, again)}
        if min(pixels.shape[-2:]) >= WINDOW:
            found["ssim"] = ssim(pixels, again)
        if self.perceptual is not None:
            found["held_out_lpips"] = self.perceptual(images, decoded.clamp(-1, 1))
        return found


def perceptual_at_hand(size: int, device: torch.device) -> Perceptual | None:
    """LPIPS if the weights of a backbone lie in torch.hub's folder. Nothing is downloaded."""
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    nets = [net for net, pattern in BACKBONES.items() if any(folder.glob(pattern))]
    if not nets or size < 32:
        return None
    from autoencoder.training.lpips import PerceptualDistance  # lpips and torchvision

    return PerceptualDistance(nets[0], device)
