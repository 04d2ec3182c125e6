"""Hashes of weights and files, and generators of random numbers for one purpose each."""

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from foundation.seeds import derived_seed


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


def generator(seed: int, *path: int | str) -> torch.Generator:
    """Return a CPU generator for one purpose, seeded by `derived_seed`."""
    return torch.Generator().manual_seed(derived_seed(seed, *path))


def generators(seed: int, purpose: str, numbers: Iterable[int]) -> list[torch.Generator]:
    """Return one CPU generator per image number."""
    return [generator(seed, purpose, number) for number in numbers]
