"""Bytes that are almost right: what a bad disk, a cut connection or an attacker makes of a file."""

import random
from collections.abc import Callable, Sequence

NUMBERS = [0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF]
NUMBERS += [2**63 - 1, 2**63, 2**64 - 1]  # the ends of the types that formats have
WORDS = [b"null", b"true", b"-1", b"1e999", b"NaN", b"[]", b"{}", b'""', b"9" * 400, b"\xff\xfe"]
WORDS += [b"\0", b"\x1b[31m", b"\\ud800", b"[" * 2000, b"../../", b"\r\n", b"\xe2\x80\xae"]

Mutator = Callable[[random.Random, bytes, Sequence[bytes]], bytes]


def mutated(rng: random.Random, seeds: Sequence[bytes]) -> bytes:
    """Return one of the seeds with one to four changes, most often one."""
    content = rng.choice(seeds)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 4))):
        content = rng.choice(MUTATORS)(rng, content, seeds)
    return content


def place(rng: random.Random, content: bytes) -> int:
    """Return a position; every third one is in the header, where most meaning is."""
    length = len(content)
    return rng.randrange((min(length, 64) if rng.random() < 1 / 3 else length) + 1)


def flip_bits(rng: random.Random, content: bytes, seeds: Sequence[bytes]) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 8)) if content else 0):
        changed[place(rng, content[:-1])] ^= 1 << rng.randrange(8)
    return bytes(changed)


def truncate(rng: random.Random, content: bytes, seeds: Sequence[bytes]) -> bytes:
    return content[: place(rng, content)]


def remove(rng: random.Random, content: bytes, seeds: Sequence[bytes]) -> bytes:
    start = place(rng, content)
    return content[:start] + content[start + rng.choice((1, 2, 4, 16, 512)) :]


def repeat(rng: random.Random, content: bytes, seeds: Sequence[bytes]) -> bytes:
    start = place(rng, content)
    part = content[start : start + rng.choice((1, 8, 64, 512))]
    return content[:start] + part * rng.choice((2, 3, 50)) + content[start:]


def zero(rng: random.Random, content: bytes, seeds: Sequence[bytes]) -> bytes:
    start, count = place(rng, content), rng.choice((1, 4, 64, 512))
    return content[:start] + bytes(len(content[start : start + count])) + content[start + count :]


def insert(rng: random.Random, content: bytes, seeds: Sequence[bytes]) -> bytes:
    start = place(rng, content)
    new = rng.choice((rng.choice(WORDS), rng.randbytes(rng.choice((1, 4, 100)))))
    return content[:start] + new + content[start:]


def overwrite_number(rng: random.Random, content: bytes, seeds: Sequence[bytes]) -> bytes:
    """Put the largest and smallest numbers of the usual sizes where others were."""
    start, size = place(rng, content), rng.choice((1, 2, 4, 8))
    number = rng.choice(NUMBERS) % 256**size
    new = number.to_bytes(size, rng.choice(("little", "big")))
    return content[:start] + new + content[start + size :]


def splice(rng: random.Random, content: bytes, seeds: Sequence[bytes]) -> bytes:
    """Join the beginning of one file to the end of another."""
    other = rng.choice(seeds)
    return content[: place(rng, content)] + other[place(rng, other) :]


MUTATORS: list[Mutator] = [
    flip_bits,
    flip_bits,
    truncate,
    remove,
    repeat,
    zero,
    insert,
    overwrite_number,
    splice,
]
