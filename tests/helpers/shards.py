"""Small tar files of images and captions."""

import hashlib
import io
import json
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

from tests.helpers.images import picture

SAMPLES = 11  # in the shards that `make_shards` writes
PER_SHARD = 4


def sample_members(root: Path, k: int) -> dict[str, bytes]:
    """Return extension -> content for sample k; some have two captions, some a .json member.

    The image is also written to root/images, to be compared with the one in the shard.
    """
    image = picture(root / "images" / f"{k:03d}.png", seed=k)
    captions = sample_captions(k)
    if k % 2:
        return {"png": image.read_bytes(), "json": json.dumps({"caption": captions}).encode()}
    return {"txt": "\n".join(captions).encode(), "png": image.read_bytes()}


def sample_captions(k: int) -> list[str]:
    """Return the captions of sample k."""
    return [f"picture number {k}", *([f"another {k}"] if k % 3 == 0 else [])]


def write_shard(path: Path, members: dict[str, bytes]) -> Path:
    """Write a tar file of members: name -> content."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return path


def make_shards(root: Path, count: int = SAMPLES) -> str:
    """Write `count` samples to root/shards, four per shard; return the pattern of the shards."""
    for first in range(0, count, PER_SHARD):
        members = {
            f"{k:03d}.{extension}": content
            for k in range(first, min(first + PER_SHARD, count))
            for extension, content in sample_members(root, k).items()
        }
        write_shard(root / "shards" / f"{first // PER_SHARD:03d}.tar", members)
    return str(root / "shards" / f"{{000..{(count - 1) // PER_SHARD:03d}}}.tar")


def gray_jpeg(seed: int, size: int = 20) -> bytes:
    """Return a JPEG of noise, with as many rows as `size` and some more columns."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size + 4), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG")
    return file.getvalue()


def make_hashed_shards(root: Path, damage: int | None = None, stated: int | None = None) -> str:
    """Write two shards whose JSON states sha256 of the images.

    Args:
        damage: number of an image whose last bytes are others than those that were hashed.
        stated: number of an image of which another hash is stated.
    """
    for shard in (0, 1):
        members: dict[str, bytes] = {}
        for k in range(5 * shard, 5 * shard + 5):
            image = gray_jpeg(k, size=20 if k % 2 else 400)
            sha256 = hashlib.sha256(image if k != stated else b"other").hexdigest()
            if k == damage:
                image = image[:-40] + bytes(40)
            facts = {"caption": f"number {k}", "sha256": sha256 if k != 3 else None}
            members |= {f"{k:03d}.jpg": image, f"{k:03d}.json": json.dumps(facts).encode()}
        write_shard(root / f"{shard}.tar", members)
    return str(root / "{0..1}.tar")
