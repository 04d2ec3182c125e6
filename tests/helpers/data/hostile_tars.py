"""Tar files header by header, so that each of them can be wrong, and cases that read them.

Every case is a tar file `a.tar` that `check.py` reads. What must come of it is the number of images
that are used, and a pattern in what is printed; None where all members must be used.
"""

import io
import re
import tarfile
from functools import cache, partial
from pathlib import Path

from PIL import Image

from tests.helpers.hostile import Check, HostileCase, Outcome, refused, script

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


# What must come of it -----------------------------------------------------------------------------


def found(images: int, pattern: str | None) -> Check:
    """Require this number of images, and that what is lost is named."""

    def check(outcome: Outcome, folder: Path) -> None:
        if images == 0:
            refused(pattern or "no images")(outcome, folder)
            return
        counted = re.search(r"images +(\d+)", outcome.output)
        assert counted and int(counted[1]) == images, outcome.text
        assert outcome.status == (0 if pattern is None else 1), outcome.text
        if pattern is not None:
            assert re.search(pattern, outcome.output, re.DOTALL), outcome.output
        assert pattern is not None or "Left out" not in outcome.output, outcome.output

    return check


def noted(images: int, pattern: str) -> Check:
    """Require this number of images, no problem, and a note."""

    def check(outcome: Outcome, folder: Path) -> None:
        found(images, None)(outcome, folder)
        assert re.search(pattern, outcome.output, re.DOTALL), outcome.output

    return check


def write(content: bytes, folder: Path) -> None:
    (folder / "a.tar").write_bytes(content)


IN = r"a\.tar: .*byte [\d,]+ after 1\.txt.*of its [\d,]+ bytes"

CHECK = ("check", "a.tar", "--batch-size", "1")


def case(name: str, content: bytes, images: int, pattern: str | None = None) -> HostileCase:
    return HostileCase(name, partial(write, content), script(*CHECK), found(images, pattern))


def inside(name: str, extra: bytes, images: int, pattern: str | None = None) -> HostileCase:
    """Make a case of members between two good ones."""
    return case(name, between(extra), images, pattern)


def note(name: str, content: bytes, pattern: str, images: int = 4) -> HostileCase:
    return HostileCase(name, partial(write, content), script(*CHECK), noted(images, pattern))
