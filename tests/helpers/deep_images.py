"""Small files that are more than 8-bit pictures, for tests."""

from pathlib import Path

import numpy as np
import pytest
import torch

from dataset.images.pixel_format import PixelFormat
from dataset.images.transform import ImageTransform
from dataset.images.write import png_bytes

SIXTEEN = PixelFormat("uint16", 0, 65535)
SIDE = 8


def numbers(*shape: int, dtype: str = "uint16", high: float = 65536, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).random(shape) * high).astype(dtype)


def read(path: Path, channels: int, pixels: PixelFormat = SIXTEEN) -> np.ndarray:
    """The numbers of an 8x8 file after the way to the network and back: (h, w, c)."""
    images = ImageTransform(SIDE, channels, crop="none", format=pixels)(path)
    assert images.dtype == np.float32 and np.abs(images).max() <= 1
    return pixels.restore(torch.from_numpy(images)).transpose(1, 2, 0)


def png(path: Path, values: np.ndarray) -> Path:
    path.write_bytes(png_bytes(values))
    return path


def npy(path: Path, values: np.ndarray) -> Path:
    np.save(path, values)
    return path


def tiff(path: Path, values: np.ndarray, **options) -> Path:
    pytest.importorskip("tifffile").imwrite(path, values, **options)
    return path
