"""Hashes of weights and files, and seeds derived from hashes.

A derived seed depends only on the seed of the run and on a name, such as ("train", step). So no
generator state has to be saved, and a resumed run draws the same numbers as an uninterrupted one.
The training loop of EDM2 (Karras et al. 2024, arXiv:2312.02696) seeds by rank and image count in
the same spirit.
"""

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor


def tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    """Compute the sha256 of tensors: of their names, shapes, and values in float32.

    A file's own hash would not do: the same weights with another header, in half precision, in a
    pipeline folder or in a single file are the same model.

    Returns:
        64 hexadecimal digits.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        values = tensor.detach().cpu().float().contiguous()
        digest.update(f"{name} {values.dtype} {tuple(values.shape)}".encode())
        digest.update(values.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def file_sha256(file: Path) -> str:
    """Compute the sha256 of a file's bytes, as 64 hexadecimal digits."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def seed_from(message: bytes, byteorder: Literal["little", "big"] = "little") -> int:
    """Derive a seed in [0, 2**63) from the sha256 of a message."""
    return int.from_bytes(hashlib.sha256(message).digest()[:8], byteorder) >> 1


def derived_seed(seed: int, *path: int | str) -> int:
    """Derive a seed in [0, 2**63) for one purpose, such as `derived_seed(seed, "train", step)`."""
    return seed_from(repr((seed, *path)).encode())


def generator(seed: int, *path: int | str) -> torch.Generator:
    """Return a CPU generator for one purpose, seeded by `derived_seed`."""
    return torch.Generator().manual_seed(derived_seed(seed, *path))


def generators(seed: int, purpose: str, numbers: Iterable[int]) -> list[torch.Generator]:
    """Return one CPU generator per image number."""
    return [generator(seed, purpose, number) for number in numbers]
