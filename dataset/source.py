"""Where an image lies (file, member of a tar, cell of a table), and what to say of bad ones."""

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NamedTuple

from dataset.stores.remote import RemoteFile
from foundation.errors import UserError, one_line

IN_MEMORY = 64 * 2**20  # bytes; a larger member is read piece by piece


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
        sha256: what its shard says that the file's hash is; None: reading it compares nothing.
    """

    shard: Path | RemoteFile
    name: str
    offset: int
    size: int
    sha256: bytes | None = field(default=None, compare=False)

    @property
    def suffix(self) -> str:
        return PurePosixPath(self.name).suffix

    def stat(self) -> FileSize:
        return FileSize(self.size)

    def open(self, mode: Literal["rb"] = "rb") -> io.BytesIO | io.BufferedReader:
        assert mode == "rb", "a member of a tar file can only be read, as bytes"
        if self.size > IN_MEMORY:
            if self.sha256 is not None:
                with replace(self, sha256=None).open() as file:
                    self.compare(hashlib.file_digest(file, "sha256").digest())
            return io.BufferedReader(MemberFile(self))
        return io.BytesIO(self.read_bytes())

    def read_bytes(self) -> bytes:
        if isinstance(self.shard, RemoteFile):
            content = self.shard.read_range(self.offset, self.offset + self.size)
        else:
            with self.shard.open("rb") as file:
                file.seek(self.offset)
                content = file.read(self.size)
        if len(content) < self.size:
            raise OSError(f"its tar file ends after {self.shard.stat().st_size} bytes")
        if self.sha256 is not None:
            self.compare(hashlib.sha256(content).digest())
        return content

    def read_head(self, size: int) -> bytes:
        """Read the first bytes, whose hash says nothing."""
        return replace(self, size=min(size, self.size), sha256=None).read_bytes()

    def compare(self, sha256: bytes) -> None:
        """Raise UnusableImage if the file has not the hash that its shard states."""
        if sha256 != self.sha256:
            stated = "" if self.sha256 is None else self.sha256.hex()
            raise UnusableImage(
                self,
                f"has the sha256 {sha256.hex()}, but its .json states {stated}: it is damaged, or "
                "the hash is of another file. Fetch the shard again, or leave out trust_hashes, so "
                "that all images are read at the first start",
            )

    def __str__(self) -> str:
        return f"{self.shard}: {one_line(self.name, 500)}"


class MemberFile(io.RawIOBase):
    """A large member of a tar file, of which only what is asked for is read."""

    mode = "rb"

    def __init__(self, member: Member):
        self.member, self.position = member, 0
        self.name = str(member)
        self.shard = member.shard.open("rb")

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self.position, io.SEEK_END: self.member.size}[whence]
        self.position = max(start + offset, 0)
        return self.position

    def readinto(self, buffer: Any, /) -> int:
        view = memoryview(buffer).cast("B")
        count = max(min(len(view), self.member.size - self.position), 0)
        self.shard.seek(self.member.offset + self.position)
        content = self.shard.read(count)
        view[: len(content)] = content
        self.position += len(content)
        return len(content)

    def close(self) -> None:
        self.shard.close()
        super().close()


ROW_BITS = 40  # of `Cell.position`; the bits above are the number of the group


@dataclass(frozen=True)
class Cell:
    """An image inside a parquet or Arrow file, with the methods of `Path` that reading it needs.

    Args:
        file: the table.
        group: number of the row group, or of the record batch, counted from 0.
        row: number of the row in the file, counted from 0.
        column: name of the column of images.
        name: what the table calls the image.
    """

    file: Path | RemoteFile
    group: int
    row: int
    column: str
    name: str = ""

    @property
    def suffix(self) -> str:
        return PurePosixPath(self.name).suffix

    @property
    def position(self) -> int:
        """Group and row in one number, as the index stores it."""
        return self.group << ROW_BITS | self.row

    @classmethod
    def at(cls, file: Path | RemoteFile, position: int, column: str, name: str) -> "Cell":
        """Undo `position`."""
        return cls(file, position >> ROW_BITS, position & ((1 << ROW_BITS) - 1), column, name)

    def stat(self) -> FileSize:
        return FileSize(len(self.read_bytes()))

    def open(self, mode: Literal["rb"] = "rb") -> io.BytesIO:
        assert mode == "rb", "a cell of a table can only be read, as bytes"
        return io.BytesIO(self.read_bytes())

    def read_bytes(self) -> bytes:
        from dataset.tabular.group_cache import GROUPS  # imports pyarrow, which may be missing

        if isinstance(self.file, RemoteFile):
            self.file.info()  # it must be the file that was indexed
        content = GROUPS.value(self)
        if content is None:
            raise OSError(f"the column {self.column!r} is empty in this row")
        return content

    def __str__(self) -> str:
        return f"{self.file}: {self.place}"

    @property
    def place(self) -> str:
        """Where it is in the table, for messages."""
        return f"row group {self.group}, row {self.row}"


Source = Path | Member | Cell | RemoteFile  # the location of an image


@dataclass(frozen=True)
class UnusableFile:
    """An entry of the list of files that were left out, with the reason."""

    path: Source
    reason: str

    def __str__(self) -> str:
        return f"{one_line(self.path, 500)}: {one_line(self.reason, 500)}"


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
    lines = [f"  {one_line(item, 1000)}" for item in items[:limit]]
    if len(items) > limit:
        lines.append(f"  and {len(items) - limit} more")
    return "\n".join(lines)
