"""Seeds derived from hashes: a function of the seed of the run and of a name alone.

The name is such as ("train", step). So no generator state has to be saved, and a resumed run draws
the same numbers as an uninterrupted one. The training loop of EDM2 (Karras et al. 2024,
arXiv:2312.02696) seeds by rank and image count in the same spirit. Nothing here imports torch;
foundation/hashing.py makes generators of such seeds.
"""

import hashlib
from typing import Literal


def seed_from(message: bytes, byteorder: Literal["little", "big"] = "little") -> int:
    """Derive a seed in [0, 2**63) from the sha256 of a message."""
    return int.from_bytes(hashlib.sha256(message).digest()[:8], byteorder) >> 1


def derived_seed(seed: int, *path: int | str) -> int:
    """Derive a seed in [0, 2**63) for one purpose, such as `derived_seed(seed, "train", step)`."""
    return seed_from(repr((seed, *path)).encode())
