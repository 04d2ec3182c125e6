"""Tar files header by header, so that each of them can be wrong."""

import io
import tarfile
from functools import cache

from PIL import Image

BLOCK = 512
SAMPLES = 4
FIELDS = {  # of a header: name -> (position, length)
    "name": (0, 100),
    "mode": (100, 8),
    "uid": (108, 8),
    "size": (124, 12),
    "mtime": (136, 12),
    "checksum": (148, 6),
    "type": (156, 1),
    "link": (157, 100),
    "magic": (257, 6),
    "prefix": (345, 155),
}


@cache
def jpeg(k: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (24, 24), (40 * k % 256, 90, 9)).save(file, "JPEG")
    return file.getvalue()


def info(name: str, kind: bytes = b"0", link: str = "", size: int = 0) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname, entry.size = kind, link, size
    return entry


def header(entry: tarfile.TarInfo, layout: int = tarfile.GNU_FORMAT) -> bytes:
    return entry.tobuf(layout, "utf-8", "surrogateescape")


def padded(content: bytes) -> bytes:
    return content + bytes(-len(content) % BLOCK)


def member(name: str, content: bytes, layout: int = tarfile.GNU_FORMAT) -> bytes:
    return header(info(name, size=len(content)), layout) + padded(content)


def sample(k: int, ending: str = "jpg") -> bytes:
    return member(f"{k}.{ending}", jpeg(k)) + member(f"{k}.txt", f"picture {k}".encode())


GOOD = [sample(k) for k in range(SAMPLES)]
END = bytes(2 * BLOCK)
WHOLE = b"".join(GOOD) + END


def between(extra: bytes) -> bytes:
    """Put members in the middle of a good shard."""
    return b"".join(GOOD[:2]) + extra + b"".join(GOOD[2:]) + END


def checksummed(block: bytes) -> bytes:
    """Write the right checksum into a header."""
    block = block[:148] + b" " * 8 + block[156:]
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]


def with_field(block: bytes, field: str, value: bytes) -> bytes:
    """Overwrite a field of a header, with the right checksum."""
    start, _ = FIELDS[field]
    return checksummed(block[:start] + value + block[start + len(value) :])


def pax(records: bytes, kind: bytes = b"x") -> bytes:
    return header(info("pax", kind, size=len(records))) + padded(records)


def record(text: str) -> bytes:
    """Write a pax record, whose length counts itself."""
    raw = f" {text}\n".encode("utf-8", "surrogateescape")
    length = len(raw) + 1
    while len(f"{length}") + len(raw) != length:
        length += 1
    return f"{length}".encode() + raw


def flipped(position: int, bit: int = 0) -> bytes:
    changed = bytearray(WHOLE)
    changed[position] ^= 1 << bit
    return bytes(changed)


def headers() -> list[int]:
    """Return the position of each member's header."""
    with tarfile.open(fileobj=io.BytesIO(WHOLE)) as tar:
        return [entry.offset for entry in tar.getmembers()]


HEADERS = headers()
