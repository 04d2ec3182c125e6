"""Pictures side by side, for previews."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor


def grid(images: UInt8[Tensor, "n c h w"], columns: int, gap: int = 2) -> Image.Image:
    """Row by row on a grey ground, as one picture; `c` is 1 (grey) or 3 (RGB) or 4 (RGBA)."""
    count, channels, height, width = images.shape
    if channels not in (1, 3, 4):
        images = images[:, :1]  # a picture of the first channel is better than none
        channels = 1
    rows = -(-count // columns)
    canvas = torch.full(
        (channels, rows * (height + gap) + gap, columns * (width + gap) + gap), 128
    ).to(torch.uint8)
    for k, image in enumerate(images.cpu()):
        top = gap + k // columns * (height + gap)
        left = gap + k % columns * (width + gap)
        canvas[:, top : top + height, left : left + width] = image
    pixels = canvas.permute(1, 2, 0).numpy()
    return Image.fromarray(pixels[..., 0] if channels == 1 else pixels)


def pixels_of(pictures: Sequence[Image.Image]) -> UInt8[Tensor, "n c h w"]:
    """Pictures of equal size and mode as one tensor."""
    arrays = [np.atleast_3d(np.asarray(picture)) for picture in pictures]
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2)
