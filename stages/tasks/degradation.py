"""How pictures are damaged, so that a U-Net learns to restore them."""

import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, ImageFilter
from torch import Tensor

from foundation.errors import UserError
from ldm.pipeline.image_processor import tensor_to_image

CHANCE = 0.75  # of each kind of damage, so that a picture can also have a single one, or none


@dataclass(frozen=True, kw_only=True)
class Degradation:
    """The strongest damage of each kind. What a picture gets is between none and that.

    A picture is blurred, loses contrast, gets noise, and is compressed, in this order, as in a
    camera.
    """

    blur: float = 2.0  # standard deviation of a Gaussian, in pixels
    noise: float = 0.15  # standard deviation, where black to white is 1
    jpeg: int = 20  # quality; 100 is no compression
    contrast: float = 0.5  # share that is left; 1 is all

    def __post_init__(self):
        if not self.blur and not self.noise and self.jpeg == 100 and self.contrast == 1:
            raise UserError(
                "no picture would be damaged: blur 0, noise 0, JPEG quality 100 and contrast 1. "
                "There is nothing to learn."
            )

    def damage(
        self, pixels: UInt8[Tensor, "c h w"], generator: torch.Generator
    ) -> UInt8[Tensor, "c h w"]:
        """Damage a gray or RGB picture by strengths drawn from the generator."""
        chances, shares = torch.rand(2, 4, generator=generator, dtype=torch.float64).tolist()
        blur, contrast, noise, jpeg = (
            share if chance < CHANCE else 0.0 for chance, share in zip(chances, shares, strict=True)
        )
        unit_noise = torch.randn(pixels.shape, generator=generator)
        damages: list[tuple[float, Callable[[Image.Image], Image.Image]]] = [
            (blur * self.blur, partial(add_blur, std=blur * self.blur)),
            (contrast, partial(lower_contrast, left=1 - contrast * (1 - self.contrast))),
            (noise * self.noise, partial(add_noise, noise=noise * self.noise * unit_noise)),
            (jpeg, partial(compress, quality=round(100 - jpeg * (100 - self.jpeg)))),
        ]
        picture = tensor_to_image(pixels / 127.5 - 1)
        for strength, function in damages:
            if strength:
                picture = function(picture)
        return torch.tensor(np.atleast_3d(np.asarray(picture))).permute(2, 0, 1)


def add_blur(picture: Image.Image, std: float) -> Image.Image:
    return picture.filter(ImageFilter.GaussianBlur(std))


def lower_contrast(picture: Image.Image, left: float) -> Image.Image:
    """Bring all values nearer to the picture's mean; left: share of the contrast that is left."""
    values = np.asarray(picture).astype(np.float32)
    mean = values.mean()
    return Image.fromarray((mean + left * (values - mean)).round().astype(np.uint8))


def add_noise(picture: Image.Image, noise: Tensor) -> Image.Image:
    """Add noise (c, h, w), in which 1 is the way from black to white."""
    values = np.atleast_3d(np.asarray(picture)) + 255 * noise.permute(1, 2, 0).numpy()
    values = values.round().clip(0, 255).astype(np.uint8)
    return Image.fromarray(values[..., 0] if values.shape[-1] == 1 else values)


def compress(picture: Image.Image, quality: int) -> Image.Image:
    """Compress as JPEG, unless the quality is 100."""
    if quality >= 100:
        return picture
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality)
    with Image.open(buffer) as compressed:
        return compressed.copy()
