"""A file inside a tar file, which can be read like a file in a folder."""

import io
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple


class Size(NamedTuple):
    st_size: int  # as os.stat calls it


@dataclass(frozen=True)
class Member:
    """Has of pathlib's Path what it takes to read an image.

    Args:
        shard: the tar file.
        offset: of its first byte in the tar file.
        size: in bytes.
    """

    shard: Path
    name: str
    offset: int
    size: int

    @property
    def suffix(self) -> str:
        return PurePosixPath(self.name).suffix

    def stat(self) -> Size:
        return Size(self.size)

    def open(self, mode: str = "rb") -> io.BytesIO:
        assert mode == "rb", "a member of a tar file is only read, as bytes"
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


Source = Path | Member  # where an image is
