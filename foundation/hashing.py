"""Hashes of weights and files, and seeds derived from them.

A derived seed needs no saved state: what is drawn follows from the seed of the run and from a name,
so a resumed run draws what an unbroken one would have drawn (the idea is that of EDM2's training
loop, Karras et al. 2024, arXiv:2312.02696, which seeds by rank and image count).
"""

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor


def tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    """Compute the sha256 of names, shapes and numbers in float32, in hexadecimal.

    Of the tensors and not of a file, because the same weights with other provenance in the header,
    in half precision, copied into a pipeline folder, or in a single file, are the same model.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        numbers = tensor.detach().cpu().float().contiguous()
        digest.update(f"{name} {numbers.dtype} {tuple(numbers.shape)}".encode())
        digest.update(numbers.flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def file_sha256(file: Path) -> str:
    """Compute the sha256 of a file's bytes, in hexadecimal."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def seed_from(message: bytes, byteorder: Literal["little", "big"] = "little") -> int:
    """Derive a 63-bit seed from the sha256 of a message."""
    return int.from_bytes(hashlib.sha256(message).digest()[:8], byteorder) >> 1


def derived_seed(seed: int, *path: int | str) -> int:
    """Derive a 63-bit seed for one purpose, such as `derived_seed(seed, "train", step)`."""
    return seed_from(repr((seed, *path)).encode())


def generator(seed: int, *path: int | str) -> torch.Generator:
    """Make a CPU generator for one purpose."""
    return torch.Generator().manual_seed(derived_seed(seed, *path))


def generators(seed: int, purpose: str, numbers: Iterable[int]) -> list[torch.Generator]:
    """Make one CPU generator per image number."""
    return [generator(seed, purpose, number) for number in numbers]
