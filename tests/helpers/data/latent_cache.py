"""Stand-ins for the networks behind a latent cache, fast and easy to predict."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dataset.images.transform import ImageTransform
from dataset.latent_cache.build import build_cache
from dataset.latent_cache.cache import LatentCache
from dataset.table import PairList

TRANSFORM = ImageTransform(8)
IDENTITY = {
    "transform": TRANSFORM.describe(),
    "autoencoder": "a" * 64,
    "text_encoder": "b" * 64,
    "dtype": "float32",
}


def encode_images(pixels: Tensor) -> Tensor:
    """Return one latent channel, 4 times smaller, of so low a variance that sampling adds 1e-4."""
    mean = torch.nn.functional.avg_pool2d(pixels.float(), 4).mean(1, keepdim=True) / 64
    return torch.cat([mean, torch.full_like(mean, -18.0)], dim=1)


def encode_texts(texts: list[str]) -> Tensor:
    """Return three tokens of width 2 that hold the length of each text."""
    return torch.stack([torch.full((3, 2), float(len(text))) for text in texts])


def encode_letters(texts: list[str]) -> Tensor:
    """Return three tokens of width 2 that depend on the letters: different texts, other numbers."""
    values = [float(sum(map(ord, text)) % 1000) for text in texts]
    return torch.stack([torch.full((3, 2), value) for value in values])


def build(folder: Path, pairs: PairList, **changes: Any) -> LatentCache:
    """Build a cache with these stand-ins; `changes` replace arguments of `build_cache`."""
    arguments = {
        "pairs": pairs,
        "transform": TRANSFORM,
        "encode_images": encode_images,
        "encode_texts": encode_texts,
        "folder": folder,
        "identity": IDENTITY,
        "batch_size": 2,
    }
    return build_cache(**arguments | changes)


def folder_content(folder: Path) -> dict[str, bytes]:
    """Return name -> bytes of all files in a folder."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
