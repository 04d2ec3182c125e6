"""Randomness that needs no saved state: the seed of a step follows from the seed of the run.

A resumed run therefore draws what an unbroken one would have drawn (the idea is EDM2's, Karras et
al. 2024, whose loop seeds by rank and image count). What is drawn for an image follows from its
number in the run, so it does not depend on how many processes share a batch.
"""

import hashlib
from collections.abc import Iterable

import torch


def derived_seed(seed: int, *path: int | str) -> int:
    """A 63-bit seed for one purpose, e.g. `derived_seed(seed, "train", step)`."""
    digest = hashlib.sha256(repr((seed, *path)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def generator(seed: int, *path: int | str) -> torch.Generator:
    """A CPU generator for one purpose."""
    return torch.Generator().manual_seed(derived_seed(seed, *path))


def generators(seed: int, purpose: str, numbers: Iterable[int]) -> list[torch.Generator]:
    """One for each image."""
    return [generator(seed, purpose, number) for number in numbers]
