"""How well an autoencoder reconstructs images: what trainings and `evaluate.py` measure alike."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float, Real, UInt8
from PIL import Image
from torch import Tensor

from autoencoder import Autoencoder
from autoencoder.io import read_provenance
from dataset.images.pixel_format import PixelFormat
from dataset.images.transform import ImageTransform, normalize_pixels, to_pixels_like, to_uint8
from dataset.loader import read_pixels
from evaluation.latents import LatentChannel, image_moments, latent_channels
from evaluation.reconstruction import SSIM_WINDOW, psnr, ssim
from foundation import collectives
from foundation.errors import MissingFileError, UserError
from foundation.hashing import generators
from foundation.shapes import Images, Latents, PerImage
from interop.model_card import as_mapping
from ldm.pipeline.io import read_model_provenance
from stages.flags.evaluation import NOISE
from training.logging.image_grid import image_grid

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
def decode_with_noise(
    autoencoder: Autoencoder,
    found: Reconstruction,
    strengths: Sequence[float],
    seed: int,
    numbers: range,
) -> Iterator[Pixels]:
    """Yield the images of latents with noise, for each of its strengths, as files have them.

    Args:
        strengths: standard deviations of the noise.
        numbers: of the images; with the seed they decide the noise.
    """
    shape, random = found.latents.shape[1:], generators(seed, "latent noise", numbers)
    noise = torch.stack([torch.randn(shape, generator=one) for one in random]).to(found.latents)
    for strength in strengths:
        decoded = autoencoder.decode(found.latents + strength * noise)
        yield to_pixels_like(decoded.cpu(), found.pixels)


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
class Inspection:
    """What an autoencoder makes of one picture."""

    pixels: Pixels
    reconstruction: Reconstruction
    metrics: dict[str, float]  # psnr in dB, ssim, lpips where it can be measured
    noise: tuple[float, ...]  # strengths
    noisy: list[Pixels]  # reconstructions with noise of these strengths on the latents

    @property
    def channels(self) -> list[LatentChannel]:
        """The statistics of the latents of this picture."""
        return latent_channels(self.reconstruction.moments)

    @property
    def robustness(self) -> list[tuple[float, float]]:
        """(strength of the noise, PSNR) points; without noise, strength is 0."""
        values = [psnr(self.pixels, pixels).item() for pixels in self.noisy]
        return [(0.0, self.metrics["psnr"]), *zip(self.noise, values, strict=True)]

    def numbers(self) -> dict[str, Any]:
        """Return as JSON what was measured."""
        curve = [{"noise": strength, "psnr": value} for strength, value in self.robustness]
        channels = [asdict(channel) for channel in self.channels]
        return {"metrics": self.metrics, "robustness": curve, "channels": channels}

    def pictures(self, factor: float) -> dict[str, Image.Image]:
        """Return all pictures by name.

        factor: of the difference.
        """
        latents = self.latent_pictures()
        return {
            "original": as_picture(self.pixels),
            "reconstruction": as_picture(self.reconstruction.pixels),
            "difference": self.difference(factor),
            **{f"latent-{k}": picture for k, (picture, _) in enumerate(latents)},
            **{
                f"noise-{strength:g}": as_picture(pixels)
                for strength, pixels in zip(self.noise, self.noisy, strict=True)
            },
        }

    def difference(self, factor: float) -> Image.Image:
        """Return reconstruction minus original, `factor` times, on gray."""
        first, second = (
            to_uint8(normalize_pixels(x)).float() for x in (self.pixels, self.reconstruction.pixels)
        )
        levels = 127.5 + factor * (second - first)
        return as_picture(levels.clamp(0, 255).to(torch.uint8))

    def latent_pictures(self) -> list[tuple[Image.Image, tuple[float, float]]]:
        """Return each channel as a gray picture, with the values that are black and white."""
        found: list[tuple[Image.Image, tuple[float, float]]] = []
        for channel in self.reconstruction.latents[0].float().cpu():
            low, high = channel.min().item(), channel.max().item()
            levels = 255 * (channel - low) / max(high - low, 1e-12)
            found.append((as_picture(levels.round().to(torch.uint8)[None, None]), (low, high)))
        return found


def inspect_picture(
    autoencoder: Autoencoder,
    file: Path,
    pixels: PixelFormat,
    device: torch.device,
    *,
    size: int | None = None,
    noise: Sequence[float] = NOISE,
    seed: int = 0,
) -> Inspection:
    """Encode and decode the centered square of a picture, without and with noise on the latents.

    Args:
        pixels: the format that the autoencoder was trained on.
        size: side of the square in pixels; None: as trained.

    Raises:
        UserError: the picture cannot be read as such pixels, or the size does not fit.
    """
    config, size = autoencoder.config, size or autoencoder.config.sample_size
    check_fits(autoencoder, size)
    image = read_pixels([file], ImageTransform(size, config.in_channels, format=pixels))
    found = reconstruct(autoencoder, image, device)
    perceptual = find_perceptual_distance(size, device)
    rows = likeness(image, found.pixels, perceptual, 1, device)
    noisy = list(decode_with_noise(autoencoder, found, noise, seed, range(1)))
    metrics = {name: values.item() for name, values in rows.items()}
    return Inspection(image, found, metrics, tuple(noise), noisy)


def check_fits(autoencoder: Autoencoder, size: int) -> None:
    """Raise UserError for an autoencoder whose output is no image like its input, or a wrong size.

    size: side of the images in pixels.
    """
    config = autoencoder.config
    if config.in_channels != config.out_channels:
        raise UserError(
            f"the autoencoder reads {config.in_channels} channels and writes "
            f"{config.out_channels}, so its reconstructions cannot be compared with the images."
        )
    if size % autoencoder.factor:
        nearest = max(1, round(size / autoencoder.factor)) * autoencoder.factor
        raise UserError(
            f"size {size} is not a multiple of {autoencoder.factor}, by which this autoencoder "
            f"shrinks images. Use size {nearest}."
        )


def as_picture(pixels: Pixels) -> Image.Image:
    """Return one image, in the numbers of a file, as a picture of 8 bits per channel."""
    return image_grid(to_uint8(normalize_pixels(pixels)), columns=1, gap=0)


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
            metrics["held_out_lpips"] = metrics.pop("lpips")  # next to that of the training images
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


def autoencoder_provenance(model: Path) -> Mapping[str, Any]:
    """Return how an autoencoder was trained; of a whole model, what that recorded of it."""
    if own := read_provenance(model):
        return own
    with suppress(MissingFileError):
        return as_mapping(read_model_provenance(model).get("autoencoder"))
    return {}
