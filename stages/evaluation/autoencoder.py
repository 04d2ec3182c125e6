"""Measures an autoencoder: `evaluate.py autoencoder`."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, cast

import torch
from jaxtyping import UInt8
from torch import Tensor

from autoencoder import Autoencoder
from dataset.images.pixel_format import PixelFormat
from dataset.images.transform import (
    ImageTransform,
    PixelTensor,
    normalize_pixels,
    to_uint8,
)
from dataset.source import UnusableImage
from evaluation.baselines import (
    BITS_PER_NUMBER,
    JPEG_CHANNELS,
    bicubic_round_trip,
    jpeg_at,
)
from evaluation.distances import all_distances, check_self_test
from evaluation.estimates import Estimate, mean_estimate
from evaluation.feature_spaces.choice import ChosenSpaces
from evaluation.feature_spaces.space import FeatureSpace
from evaluation.latents import LatentChannel, latent_channels
from evaluation.reconstruction import psnr
from foundation.errors import UserError
from stages.evaluation.blocks import Blocks, Rows, identity_hash
from stages.evaluation.data import (
    SEEN_CHANNELS,
    ChosenImages,
    FeatureBatches,
    Reference,
    pixel_reader,
    to_rgb,
)
from stages.evaluation.reconstruction import (
    Perceptual,
    Reconstruction,
    check_fits,
    decode_with_noise,
    describe_missing_lpips,
    find_backbones,
    find_perceptual_distance,
    likeness,
    reconstruct,
)

SAMPLED = 128  # images of the robustness curve, the first of the chosen ones
WORST = 20  # reconstructions that the report shows
BASELINES = {"bicubic": "bicubic", "jpeg": "JPEG", "mean": "mean image"}
BETTER: dict[str, Literal["higher", "lower"]] = {
    "psnr": "higher",
    "ssim": "higher",
    "lpips": "lower",
}


@dataclass(frozen=True)
class Settings:
    """How an autoencoder is measured, besides the images.

    Args:
        noise: standard deviations of the noise on the latents, for the robustness curve.
        batch_size: images that a network sees at once.
        seed: of that noise.
    """

    noise: tuple[float, ...]
    batch_size: int
    seed: int


class AutoencoderMeasurement:
    """Reconstructs images, and computes numbers of each of them in blocks on disk."""

    def __init__(
        self,
        autoencoder: Autoencoder,
        images: ChosenImages,
        size: int,
        pixels: PixelFormat,
        chosen: ChosenSpaces,
        settings: Settings,
        device: torch.device,
        out: Path,
    ):
        """Check that the images fit.

        Args:
            size: side of the images in pixels.
            pixels: the format that the autoencoder was trained on.
            out: folder of the report; unfinished blocks are in its folder blocks/.

        Raises:
            UserError: the size or the channels do not fit the autoencoder.
        """
        check_fits(autoencoder, size)
        config = autoencoder.config
        self.autoencoder, self.images, self.settings, self.device = (
            *(autoencoder, images, settings),
            device,
        )
        self.transform = ImageTransform(size, config.in_channels, format=pixels)
        self.refuse_other_channels()
        self.perceptual: Perceptual | None = find_perceptual_distance(size, device)
        self.backbone = find_backbones()[0] if self.perceptual is not None else ""
        seen = config.in_channels in SEEN_CHANNELS
        self.spaces: list[FeatureSpace] = chosen.spaces if seen else []
        self.missing = dict(chosen.missing)
        if self.perceptual is None:
            self.missing["LPIPS"] = describe_missing_lpips(size)
        if not seen:
            self.missing["distances of feature spaces"] = (
                f"they need 1 or 3 channels; these images have {config.in_channels}"
            )
        self.pictures = pixels.eight_bit  # baselines are pictures, too
        self.batches = FeatureBatches(settings.batch_size)
        self.reference = Reference(images, self.transform, out / "blocks", settings.batch_size)
        self.blocks = Blocks(
            out / "blocks" / identity_hash({**self.protocol, "autoencoder": autoencoder.sha256}),
            len(images.pairs),
        )

    def refuse_other_channels(self) -> None:
        """Decode one image; refuse all of them if they have other channels than the autoencoder.

        Raises:
            UserError: they have.
        """
        try:
            self.transform(self.images.pairs.paths[0])
        except UnusableImage as error:
            raise UserError(
                f"the autoencoder was made for images of {self.transform.channels} channels "
                f"({self.transform.format}), and the data do not fit: {error}"
            ) from error

    @cached_property
    def protocol(self) -> dict[str, Any]:
        """Return as JSON what numbers depend on besides the autoencoder."""
        return {
            "images": self.images.identity(),
            "chosen_from": self.images.source,
            "unusable_files": self.images.unusable,
            "pixels": self.transform.describe(),
            "quantized": "8 bits, rounded" if self.pictures else "no; numbers in [-1, 1]",
            "latents": "the most likely ones (mean of the posterior)",
            "lpips": self.backbone or "none",
            "noise": list(self.settings.noise),
            "noise_images": min(SAMPLED, len(self.images.pairs)),
            "seed": self.settings.seed,
            "spaces": [space.describe() for space in self.spaces],
        }

    @property
    def latent_bits(self) -> int:
        """Bits of the latents of an image, as latent caches store them."""
        side = self.transform.size // self.autoencoder.factor
        return BITS_PER_NUMBER * self.autoencoder.config.latent_channels * side * side

    def fill(self) -> None:
        """Compute everything that is not on disk yet."""
        if self.spaces:
            self.reference_blocks = {
                space.name: self.reference.features(space, self.batches) for space in self.spaces
            }
        mean = self.reference.mean_image()
        self.mean_image = mean.round().to(torch.uint8) if self.pictures else mean.float()
        read = pixel_reader(self.images, self.transform)
        self.blocks.fill(read, self.compute, "reconstructing")

    @torch.no_grad()
    def compute(self, numbers: range, pixels: PixelTensor) -> Rows:
        """Return the numbers of some images, a row for each."""
        parts = [
            self.reconstruct(numbers[start : start + len(some)], some)
            for start, some in zip(
                range(0, len(numbers), self.settings.batch_size),
                pixels.split(self.settings.batch_size),
                strict=True,
            )
        ]
        rows = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        reconstructed = cast(PixelTensor, rows.pop("pixels"))
        self.add_features(rows, "reconstruction", reconstructed)
        for name, others in self.baseline_pixels(pixels, rows).items():
            rows |= {f"{name}/{key}": v for key, v in self.likeness(pixels, others).items()}
            if name != "mean":
                self.add_features(rows, name, others)
        return rows

    def add_features(self, rows: Rows, name: str, pixels: PixelTensor) -> None:
        """Add the features of images to the rows."""
        for space in self.spaces:
            rows |= self.batches(space, to_rgb(pixels), name)

    def reconstruct(self, numbers: range, pixels: PixelTensor) -> Rows:
        """Encode and decode some images, without and with noise on the latents."""
        found = reconstruct(self.autoencoder, pixels, self.device)
        rows = {
            "pixels": found.pixels,
            "moments": found.moments,
            **self.likeness(pixels, found.pixels),
        }
        rows["noisy"] = torch.full((len(pixels), len(self.settings.noise)), torch.nan)
        few = sum(number < SAMPLED for number in numbers)
        if few:
            some = Reconstruction(found.latents[:few], found.pixels[:few], found.moments[:few])
            rows["noisy"][:few] = self.with_noise(numbers[:few], pixels[:few], some)
        return rows

    def with_noise(self, numbers: range, pixels: PixelTensor, found: Reconstruction) -> Tensor:
        """Return the PSNR of each image for each strength of noise."""
        settings = self.settings
        noisy = decode_with_noise(self.autoencoder, found, settings.noise, settings.seed, numbers)
        return torch.stack([psnr(pixels, others).float() for others in noisy], dim=1)

    def likeness(self, pixels: PixelTensor, others: PixelTensor) -> Rows:
        """Return the metrics of each pair of images."""
        size = self.settings.batch_size
        return likeness(pixels, others, self.perceptual, size, self.device)

    def baseline_pixels(self, pixels: PixelTensor, rows: Rows) -> dict[str, PixelTensor]:
        """Return what the images become without a network."""
        mean = self.mean_image.expand(len(pixels), -1, -1, -1)
        if not self.pictures:
            return {"mean": mean}
        others = {"bicubic": bicubic_round_trip(pixels, self.autoencoder.factor), "mean": mean}
        if pixels.shape[1] in JPEG_CHANNELS:
            found = jpeg_at(pixels, self.latent_bits)
            others["jpeg"] = found.pixels
            rows |= {"jpeg_bits": found.size, "jpeg_fits": found.fits}
        return others

    # What rank 0 makes of the numbers -------------------------------------------------------------

    def metrics(self) -> tuple[dict[str, Estimate], dict[str, dict[str, Estimate]]]:
        """Return the metrics of the reconstructions, and those of the baselines."""
        names = self.blocks.names()
        own = {
            key: mean_estimate(self.blocks.rows(key), BETTER[key]) for key in BETTER if key in names
        }
        others = {
            title: {
                key: mean_estimate(self.blocks.rows(f"{name}/{key}"), BETTER[key])
                for key in BETTER
                if f"{name}/{key}" in names
            }
            for name, title in BASELINES.items()
            if f"{name}/psnr" in names
        }
        for space in self.spaces:
            self.add_distances(space, own, others)
        return own, others

    def add_distances(
        self,
        space: FeatureSpace,
        own: dict[str, Estimate],
        others: dict[str, dict[str, Estimate]],
    ) -> None:
        """Add the distances in one feature space."""
        reference = self.reference_blocks[space.name].rows(f"reference/{space.name}")
        check_self_test(space.name, reference)
        names = self.blocks.names()
        sets = {name: f"{name}/{space.name}" for name in ("reconstruction", "bicubic", "jpeg")}
        features = {name: self.blocks.rows(key) for name, key in sets.items() if key in names}
        mean = space(to_rgb(self.mean_image[None])).vectors
        features["mean"] = mean.expand(len(reference), -1)
        for name, vectors in features.items():
            is_own = name == "reconstruction"
            found, missing = all_distances(
                vectors,
                reference,
                paired=name != "mean",
                is_clip=space.is_clip,
                only=None if is_own else ("kid", "frechet", "cmmd"),
                with_interval=is_own,
            )
            target = own if is_own else others[BASELINES[name]]
            target |= {f"{space.name}/{key}": value for key, value in found.items()}
            if is_own:
                self.missing |= {f"{key} in {space.name}": why for key, why in missing.items()}

    def channels(self) -> list[LatentChannel]:
        """Return the statistics of the latent channels."""
        return latent_channels(self.blocks.rows("moments"))

    def robustness(self) -> list[tuple[float, float]]:
        """Return (strength of the noise, mean PSNR) points; without noise, strength is 0."""
        noisy = self.blocks.rows("noisy")[:SAMPLED]
        plain = self.blocks.rows("psnr")[:SAMPLED].mean().item()
        means: list[float] = noisy.mean(dim=0).tolist()
        return [(0.0, plain), *zip(self.settings.noise, means, strict=True)]

    @torch.no_grad()
    def pictures_of(
        self, numbers: Sequence[int]
    ) -> list[tuple[str, UInt8[Tensor, "c h w"], UInt8[Tensor, "c h w"]]]:
        """Return names, 8-bit images and reconstructions of these images, computed again."""
        read, paths = pixel_reader(self.images, self.transform), self.images.pairs.paths
        found: list[tuple[str, Tensor, Tensor]] = []
        for number in numbers:
            pixels = read(range(number, number + 1))
            latents = self.autoencoder.encode(normalize_pixels(pixels.to(self.device))).mode()
            decoded = self.autoencoder.decode(latents).cpu()
            image, again = to_uint8(normalize_pixels(pixels)), to_uint8(decoded)
            found.append((str(paths[number]), image[0], again[0]))
        return found

    def worst(self) -> list[int]:
        """Return the numbers of the images that are reconstructed worst: by LPIPS, else by PSNR."""
        names = self.blocks.names()
        score = -self.blocks.rows("lpips") if "lpips" in names else self.blocks.rows("psnr")
        return score.argsort(stable=True)[:WORST].tolist()

    def per_image(self) -> dict[str, list[float]]:
        """Return the metrics of each image, with six digits."""
        names = self.blocks.names()
        return {
            key: [float(f"{value:.6g}") for value in self.blocks.rows(key).tolist()]
            for key in BETTER
            if key in names
        }


def describe_autoencoder(autoencoder: Autoencoder, provenance: dict[str, Any]) -> dict[str, Any]:
    """Return as JSON what the report says of the autoencoder."""
    config = autoencoder.config
    trained: dict[str, Any] = provenance.get("config") or {}
    averaged = "not recorded"
    if "ema_halflife" in trained:
        averaged = "yes" if trained["ema_halflife"] else "no"
    return {
        "sha256": autoencoder.sha256,
        "factor": autoencoder.factor,
        "latent_channels": config.latent_channels,
        "image_channels": config.in_channels,
        "averaged_weights": averaged,
        "weights": provenance.get("weights", "not recorded"),
        "parameters": sum(parameter.numel() for parameter in autoencoder.parameters()),
    }


def channel_rows(channels: Sequence[LatentChannel]) -> list[dict[str, Any]]:
    """Return the statistics of channels as JSON."""
    return [
        {"channel": k, **asdict(channel), "dead": channel.is_dead}
        for k, channel in enumerate(channels)
    ]
