"""Image files of every format and variant that is read.

Every input goes the ways of a training, of the first check and of `sample.py`.
"""

import random
import struct
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from dataset.images.pixel_format import INTEGERS, PixelFormat
from dataset.images.texts import read_texts
from dataset.images.transform import ImageTransform, inspect_image, load_image, parse_mode
from dataset.source import UnusableImage
from foundation.errors import UserError
from tests.helpers.data.image_files import PNG_SIGNATURE, chunk, good_files
from tests.hostile.fuzz import FuzzTarget
from tests.hostile.mutation import NUMBERS, mutated

MOST_CHANNELS = 64  # a mutation may make thousands of channels, which are no fault, only slow


def seeds_of(*endings: str) -> Sequence[bytes]:
    return [content for name, content in good_files().items() if name.endswith(endings)]


def tiff_seeds() -> Sequence[bytes]:
    return seeds_of(".tif")


def png_seeds() -> Sequence[bytes]:
    return seeds_of("png")


def jpeg_seeds() -> Sequence[bytes]:
    return seeds_of(".jpg", ".jpeg", ".jfif", ".jpe", ".jif", ".mpo")


def webp_seeds() -> Sequence[bytes]:
    return seeds_of(".webp")


def simple_seeds() -> Sequence[bytes]:
    return seeds_of(".gif", ".bmp", ".dib")


def npy_seeds() -> Sequence[bytes]:
    return seeds_of(".npy")


def mutate_png(rng: random.Random, seeds: Sequence[bytes]) -> bytes:
    """Change chunks, and write the right checksums, without which no change gets far."""
    content = rng.choice(seeds) if rng.random() < 0.5 else mutated(rng, seeds)
    chunks: list[tuple[bytes, bytes]] = []
    position = len(PNG_SIGNATURE)
    while position + 8 <= len(content):
        length, kind = struct.unpack_from(">I4s", content, position)
        chunks.append((kind, content[position + 8 : position + 8 + length]))
        position += 12 + length
    if not chunks:
        return content
    k = rng.randrange(len(chunks))
    change = rng.choice(("swap", "drop", "double", "data", "data", "none"))
    if change == "swap":
        other = rng.randrange(len(chunks))
        chunks[k], chunks[other] = chunks[other], chunks[k]
    elif change == "drop":
        del chunks[k]
    elif change == "double":
        chunks.insert(rng.randrange(len(chunks)), chunks[k])
    elif change == "data":
        chunks[k] = chunks[k][0], mutated(rng, [chunks[k][1], *(data for _, data in chunks)])
    return PNG_SIGNATURE + b"".join(chunk(kind, data) for kind, data in chunks)


def mutate_tiff(rng: random.Random, seeds: Sequence[bytes]) -> bytes:
    """Change tags: their numbers, types, counts, and which tag they are."""
    if rng.random() < 0.3:
        return mutated(rng, seeds)
    content = bytearray(rng.choice(seeds))
    order, big = ("<" if content[:2] == b"II" else ">"), 43 in content[2:4]
    (start,) = struct.unpack_from(order + ("Q" if big else "I"), content, 8 if big else 4)
    (count,) = struct.unpack_from(order + ("Q" if big else "H"), content, start)
    for _ in range(rng.choice((1, 1, 2, 3))):
        entry = start + (8 if big else 2) + rng.randrange(count) * (20 if big else 12)
        field, size = rng.choice(((0, 2), (2, 2), (4, 8 if big else 4), *((8 + 4 * big, 2),) * 4))
        small = rng.choice((0, 1, 2, 3, 4, 5, 6, 7, 8, 16, 32, 258, 277, 32773, 34712))
        number = small if rng.random() < 0.7 else rng.choice(NUMBERS)
        content[entry + field : entry + field + size] = (number % 256**size).to_bytes(
            size, "little" if order == "<" else "big"
        )
    return bytes(content)


def read(file: Path) -> object:
    """Read pixels, the way its own header asks for; what the header says must then be true."""
    with suppress(UserError):
        read_texts(file)
    size, mode = inspect_image(file)
    dtype, channels = parse_mode(mode)
    if channels > MOST_CHANNELS:
        return None
    pixels = PixelFormat(dtype, *((0, 100) if dtype in INTEGERS else (0, 1)))
    if dtype == "uint8" and channels in (1, 3, 4):
        pixels = PixelFormat()
        with suppress(UnusableImage):
            assert load_image(file).size == size
    try:
        result = ImageTransform(8, channels, "letterbox", format=pixels)(file)
    except UnusableImage as error:
        # NaN is refused only when numbers are read. Layouts that are ambiguous are, too.
        if not any(word in error.reason for word in ("NaN", "layout", "8-bit picture")):
            raise AssertionError(f"inspected as {mode}, then refused: {error}") from error
        return None
    assert result.shape == (channels, 8, 8)
    return size


TARGETS = [
    FuzzTarget("a.tif", tiff_seeds, read, mutate_tiff),
    FuzzTarget("a.png", png_seeds, read, mutate_png),
    FuzzTarget("a.jpg", jpeg_seeds, read),
    FuzzTarget("a.webp", webp_seeds, read),
    FuzzTarget("a.bmp", simple_seeds, read),
    FuzzTarget("a.npy", npy_seeds, read),
]
