"""Image grids for previews."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from foundation.files import atomic_file

BACKGROUND = 128  # gray level


def image_grid(
    images: UInt8[Tensor, "n channels height width"], columns: int, gap: int = 2
) -> Image.Image:
    """Arrange images row by row on gray, as one picture.

    Args:
        images: gray (1 channel), RGB (3) or RGBA (4); of any other number of channels, only the
            first is shown.
        gap: pixels between images and around them.
    """
    count, channels, height, width = images.shape
    if channels not in (1, 3, 4):
        images, channels = images[:, :1], 1
    rows = -(-count // columns)
    size = (channels, rows * (height + gap) + gap, columns * (width + gap) + gap)
    canvas = torch.full(size, BACKGROUND, dtype=torch.uint8)
    for k, image in enumerate(images.cpu()):
        top = gap + k // columns * (height + gap)
        left = gap + k % columns * (width + gap)
        canvas[:, top : top + height, left : left + width] = image
    pixels = canvas.permute(1, 2, 0).numpy()
    return Image.fromarray(pixels[..., 0] if channels == 1 else pixels)


def save_grid(images: UInt8[Tensor, "n channels height width"], columns: int, file: Path) -> None:
    """Write images side by side as a PNG that appears whole or not at all."""
    with atomic_file(file) as partial:
        image_grid(images, columns).save(partial, "PNG")


def pil_to_tensor(images: Sequence[Image.Image]) -> UInt8[Tensor, "n channels height width"]:
    """Stack PIL images of equal size and mode."""
    arrays = [np.atleast_3d(np.asarray(image)) for image in images]
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2)
