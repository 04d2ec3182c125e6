"""Where an image lies (a file, or a member of a tar file), and what to say if it is of no use."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple

from foundation.errors import UserError


class FileSize(NamedTuple):
    """The part of `os.stat_result` that a member of a tar file has."""

    st_size: int


@dataclass(frozen=True)
class Member:
    """A file inside a tar file, with those methods of `pathlib.Path` that reading an image needs.

    Args:
        shard: the tar file.
        name: path inside the tar file.
        offset: position of the first byte in the tar file.
        size: in bytes.
    """

    shard: Path
    name: str
    offset: int
    size: int

    @property
    def suffix(self) -> str:
        return PurePosixPath(self.name).suffix

    def stat(self) -> FileSize:
        return FileSize(self.size)

    def open(self, mode: Literal["rb"] = "rb") -> io.BytesIO:
        assert mode == "rb", "a member of a tar file can only be read, as bytes"
        return io.BytesIO(self.read_bytes())

    def read_bytes(self) -> bytes:
        with self.shard.open("rb") as file:
            file.seek(self.offset)
            content = file.read(self.size)
        if len(content) < self.size:
            raise OSError(f"its tar file ends after {self.shard.stat().st_size} bytes")
        return content

    def __str__(self) -> str:
        return f"{self.shard}: {self.name}"


Source = Path | Member  # the location of an image


@dataclass(frozen=True)
class UnusableFile:
    """An entry of the list of files that were left out, with the reason."""

    path: Source
    reason: str

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


class UnusableImage(UserError):
    """An image file that cannot be read into pixels of the kind that is asked for."""

    def __init__(self, path: Source, reason: str):
        super().__init__(path, reason)  # both arguments, so that the error can be unpickled
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


class MissingLibrary(UserError):
    """The library that reads this kind of file is not installed; the file may be fine."""


def as_lines(items: Sequence[object], limit: int = 5) -> str:
    """Write the first items on a line each, indented; more than `limit` are counted, not shown."""
    lines = [f"  {item}" for item in items[:limit]]
    if len(items) > limit:
        lines.append(f"  and {len(items) - limit} more")
    return "\n".join(lines)
