"""Small image files beyond 8-bit pictures."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dataset.images.pixel_format import PixelFormat
from dataset.images.transform import ImageTransform
from dataset.images.write import encode_png

SIXTEEN_BIT = PixelFormat("uint16", 0, 65535)
SIDE = 8


def numbers(*shape: int, dtype: str = "uint16", high: float = 65536, seed: int = 0) -> np.ndarray:
    """Draw numbers in [0, high)."""
    return (np.random.default_rng(seed).random(shape) * high).astype(dtype)


def read(path: Path, channels: int, pixels: PixelFormat = SIXTEEN_BIT) -> np.ndarray:
    """Return the numbers (h, w, c) of an 8x8 file after normalization and its reverse."""
    images = ImageTransform(SIDE, channels, crop="none", format=pixels)(path)
    assert images.dtype == np.float32 and np.abs(images).max() <= 1
    return pixels.restore(torch.from_numpy(images)).transpose(1, 2, 0)


def png(path: Path, values: np.ndarray) -> Path:
    """Write (h, w, c) as PNG."""
    if values.dtype == np.uint16 and values.shape[2] > 1:
        pytest.importorskip("imagecodecs")
    path.write_bytes(encode_png(values))
    return path


def npy(path: Path, values: np.ndarray) -> Path:
    """Write an array of any shape as .npy."""
    np.save(path, values)
    return path


def tiff(path: Path, values: np.ndarray, **options: Any) -> Path:
    """Write an array as TIFF, with options of tifffile.imwrite."""
    pytest.importorskip("tifffile").imwrite(path, values, **options)
    return path
