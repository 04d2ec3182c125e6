"""A file in an object store or on a web server, with the methods of `pathlib.Path` that we use."""

import io
import os
import re
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from typing import Any, Literal, NamedTuple

from dataset.stores import blocks
from dataset.stores.backends import PACKAGES, FileInfo, StoreError, file_info
from foundation.errors import MissingFileError, UserError, one_line

URL = re.compile(r"^([A-Za-z][\w+.-]*)://")
USER = re.compile(r"://[^/?#]*@")  # user:password@, up to the last @ before the path


class RemoteStat(NamedTuple):
    """The parts of `os.stat_result` that a remote file has; the time is a hash of the version."""

    st_size: int
    st_mtime_ns: int


@dataclass(frozen=True)
class RemoteFile:
    """A file or folder in a store.

    Args:
        url: without user, password and query.
        version: hash of size and ETag that the file must have; None: whichever it has.
    """

    url: str
    version: int | None = field(default=None, compare=False)

    def __truediv__(self, name: str) -> "RemoteFile":
        return RemoteFile(f"{self.url.rstrip('/')}/{name}") if name else self

    def __str__(self) -> str:
        return self.url

    def __fspath__(self) -> str:
        raise TypeError(f"{self.url} is not on this machine")

    @property
    def name(self) -> str:
        return PurePosixPath(self.url).name

    @property
    def suffix(self) -> str:
        return PurePosixPath(self.url).suffix

    def resolve(self) -> "RemoteFile":
        return self

    def pinned(self, version: int) -> "RemoteFile":
        """Return the same file, which must have this version whenever it is read."""
        return replace(self, version=version)

    def info(self) -> FileInfo:
        """Return size and version.

        Raises:
            StoreError: it cannot be reached, or does not have the version that it must have.
        """
        try:
            info = file_info(self.url)
        except MissingFileError as error:
            if self.version is None:
                raise
            raise StoreError(f"{one_line(self.url)} was indexed and is now missing") from error
        if self.version is not None and info.version != self.version:
            raise StoreError(
                f"{one_line(self.url)} has changed since it was indexed (another size or ETag). "
                "Put the old file back, or start again: the index is then made anew"
            )
        return info

    def stat(self) -> RemoteStat:
        info = self.info()
        return RemoteStat(info.size, info.version)

    def open(self, mode: Literal["rb"] = "rb") -> io.BufferedReader:
        assert mode == "rb", "a remote file can only be read, as bytes"
        return io.BufferedReader(RemoteStream(self), 2**16)

    def read_bytes(self) -> bytes:
        return self.read_range(0, self.info().size)

    def read_range(self, start: int, end: int) -> bytes:
        """Read some bytes; beyond the end there are none."""
        info = self.info()
        return blocks.read(self.url, info, start, min(end, info.size))

    def fetch_ahead(self, start: int, end: int) -> None:
        """Begin to fetch some bytes into the cache; who reads them will meet what goes wrong."""
        info = self.info()
        if (end := min(end, info.size)) > start:
            first, last = start // blocks.BLOCK, (end - 1) // blocks.BLOCK
            blocks.cache().prefetch(self.url, info, first, last)


class RemoteStream(io.RawIOBase):
    """A remote file as a stream with random access."""

    mode = "rb"

    def __init__(self, file: RemoteFile):
        self.file, self.position = file, 0
        self.name = str(file)
        self.size = file.info().size

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self.position, io.SEEK_END: self.size}[whence]
        self.position = max(start + offset, 0)
        return self.position

    def tell(self) -> int:
        return self.position

    def readinto(self, buffer: Any, /) -> int:
        view = memoryview(buffer).cast("B")
        content = self.file.read_range(self.position, self.position + len(view))
        view[: len(content)] = content
        self.position += len(content)
        return len(content)


def is_remote(text: str | os.PathLike[str]) -> bool:
    """Return whether this is a URL and not a path."""
    return bool(URL.match(restore_slashes(str(text))))


def restore_slashes(text: str) -> str:
    """Undo what `pathlib` makes of a URL: it joins two slashes; on Windows it turns them round."""
    text = re.sub(r"^[A-Za-z][\w+.-]+:\\.*", lambda url: url[0].replace("\\", "/"), text)
    return re.sub(r"^([A-Za-z][\w+.-]+):/(?!/)", r"\1://", text)


def parse_url(text: str | os.PathLike[str]) -> str:
    """Return a URL that may be read and printed.

    Raises:
        UserError: the store is not known, or the URL holds a password or a query. Neither is shown:
            the URL would be written into run folders and indexes, and the list of processes.
    """
    url = restore_slashes(str(text))
    match = URL.match(url)
    assert match, "not a URL"
    scheme = match[1].lower()
    if USER.search(url) or "?" in url or "#" in url:
        shown = re.split(r"[?#]", USER.sub("://", url))[0]
        raise UserError(
            f"{one_line(shown, 200)} was given with a user or password before the host, or with "
            "more behind ? or #. That would be written into run folders and logs. Leave it out; "
            "passwords of web servers come from ~/.netrc, those of stores from the environment."
        )
    if scheme not in PACKAGES:
        raise UserError(
            f"{one_line(url, 200)}: {scheme}:// cannot be read; there are "
            f"{', '.join(f'{name}://' for name in PACKAGES)}. Or fetch the files once: "
            "python recipes/fetch_shards.py URL FOLDER"
        )
    return scheme + url[len(match[1]) :]
