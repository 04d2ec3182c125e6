"""The entries of a tar file, read strictly: the end of reading is the end of the data, or an error.

Python's `tarfile` takes any header that it cannot read for the end, and ignores what is wrong in an
extended header. Here a tar file ends with blocks of zeros and nothing but zeros follows; everything
else is damage, which is named by its byte. Only headers are read. Nothing is ever extracted.
"""

import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from dataset.images.formats import name_foreign
from foundation.errors import UserError, one_line, shown

BLOCK = 512  # bytes; headers take one, and the data of a member begin and end at such a border
LONGEST_EXTENSION = 2**20  # bytes of a header that extends another one, such as by a long name
MOST_EXTENSIONS = 64  # before one member
LONGEST_PADDING = 64 * 2**20  # bytes of zeros at the end; programs write some thousand
RECORD = re.compile(rb"([1-9][0-9]{0,6}) ([^=\n]+)=")  # of a pax header: length keyword=value
SIZE = re.compile(r"[0-9]{1,19}")

KINDS = {
    b"0": "file",
    b"\0": "file",
    b"7": "file",  # "contiguous", which means nothing on systems of today
    b"1": "hard link",
    b"2": "symbolic link",
    b"3": "device",
    b"4": "device",
    b"5": "folder",
    b"6": "pipe",
    b"S": "sparse file",
}
WITHOUT_DATA = ("hard link", "symbolic link", "device", "folder", "pipe")


@dataclass(frozen=True)
class TarEntry:
    """What a header says.

    Args:
        name: with its folders, as it is written, except for "./" and "/" around it.
        kind: one of KINDS, or "member of type ...".
        offset: position of the first byte of its data.
        size: of the data in bytes.
        link: what a link points to.
        is_text: whether the name is UTF-8; if not, `name` has replacement characters.
    """

    name: str
    kind: str
    offset: int
    size: int
    link: str = ""
    is_text: bool = True


class DamagedTar(UserError):
    """A tar file that cannot be read to its end; the message continues "<file> ..."."""


class BadHeader(Exception):
    """What is wrong at the place where a header must be."""


@dataclass
class Extension:
    """What the headers before a member say about it."""

    name: bytes | None = None
    link: bytes | None = None
    size: int | None = None
    is_sparse: bool = False


def walk_tar(file: BinaryIO, end: int) -> Iterator[TarEntry]:
    """Yield the entries of a tar file of `end` bytes, in their order.

    Raises:
        DamagedTar: the rest cannot be read. All entries that were yielded are whole.
    """
    last = ""
    position = 0
    try:
        while (step := read_entry(file, position, end)) is not None:
            entry, position = step
            yield entry
            last = f" after {one_line(entry.name, 200)}"
        check_padding(file, position, end)
    except BadHeader as error:
        start = position
        message = f"at byte {start:,}{last}: {error}. "
        if start == 0:
            message = f"at its beginning: {describe_foreign(file, error)}. "
        raise DamagedTar(
            f"is damaged or cut off {message}{end - start:,} of its {end:,} bytes were not read. "
            "Fetch or write it again"
        ) from None


def describe_foreign(file: BinaryIO, error: Exception) -> str:
    """Write what a file that begins with no header is, if that can be said."""
    file.seek(0)
    foreign = name_foreign(file.read(64))
    return f"it is {foreign} and no tar file" if foreign else str(error)


def read_entry(file: BinaryIO, position: int, end: int) -> tuple[TarEntry, int] | None:
    """Return the entry whose headers begin at a position and where the next one begins.

    At the mark of the end, None.

    Raises:
        BadHeader: there is neither.
    """
    extension = Extension()
    start = position
    for _ in range(MOST_EXTENSIONS):
        header = read_header(file, position, end)
        if header is None:
            if position > start:
                raise BadHeader("a header that extends another one comes last")
            return None
        position += BLOCK
        if header.type not in b"xgXLK":
            if header.type == tarfile.GNUTYPE_SPARSE:
                position = skip_sparse_map(file, header, position, end)
            return finish_entry(header, extension, position, end)
        if header.size > LONGEST_EXTENSION:
            reason = f"a header that extends another one has {header.size:,} bytes"
            raise BadHeader(f"{reason}; at most {LONGEST_EXTENSION:,} are read")
        content = read_exactly(file, position, header.size, end)
        apply_extension(header.type, content, extension)
        position += blocks(header.size)
    raise BadHeader(f"more than {MOST_EXTENSIONS} headers extend one member")


def read_header(file: BinaryIO, position: int, end: int) -> tarfile.TarInfo | None:
    """Parse the header at a position; None for a block of zeros."""
    if position >= end:
        raise BadHeader("the zeros that mark the end of a tar file are missing")
    block = read_exactly(file, position, BLOCK, end)
    if not any(block):
        return None
    try:
        header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except (tarfile.TarError, ValueError, IndexError) as error:
        raise BadHeader(f"there is no valid header ({error})") from None
    if header.size < 0:
        raise BadHeader(f"the header gives a size of {header.size}")
    if header.type == tarfile.AREGTYPE and header.name.endswith("/"):
        header.type = tarfile.DIRTYPE
    return header


def read_exactly(file: BinaryIO, position: int, size: int, end: int) -> bytes:
    """Read bytes that must be there."""
    file.seek(position)
    content = file.read(size) if position + size <= end else b""
    if len(content) < size:
        raise BadHeader("the file ends inside a header")
    return content


def finish_entry(
    header: tarfile.TarInfo, extension: Extension, position: int, end: int
) -> tuple[TarEntry, int]:
    """Join a header and what extends it; return the entry and where the next one begins."""
    kind = KINDS.get(header.type, f"member of type {ascii(header.type)[1:]}")
    raw = header.name.encode("utf-8", "surrogateescape")
    name, is_text = decode_name(raw if extension.name is None else extension.name)
    raw = header.linkname.encode("utf-8", "surrogateescape")
    link, _ = decode_name(raw if extension.link is None else extension.link, keep_dots=True)
    size = header.size if extension.size is None else extension.size
    if extension.is_sparse and kind == "file":
        kind = "sparse file"
    if kind in WITHOUT_DATA:
        return TarEntry(name, kind, position, 0, link, is_text), position
    if position + size > end:
        raise BadHeader(
            f"{one_line(name, 200)} has {size:,} bytes, and {max(end - position, 0):,} are there"
        )
    # The last block may lack its padding if the end mark is missing too, which is named then.
    return TarEntry(name, kind, position, size, link, is_text), position + blocks(size)


def skip_sparse_map(file: BinaryIO, header: tarfile.TarInfo, position: int, end: int) -> int:
    """Return the position behind the blocks of an old sparse file's map, which precede its data."""
    _, is_extended, _ = getattr(header, "_sparse_structs", ((), False, 0))
    for _ in range(MOST_EXTENSIONS):
        if not is_extended:
            return position
        is_extended = bool(read_exactly(file, position, BLOCK, end)[504])
        position += BLOCK
    raise BadHeader(f"a sparse file has a map of {MOST_EXTENSIONS} blocks or more")


def decode_name(raw: bytes, keep_dots: bool = False) -> tuple[str, bool]:
    """Return a name as text, and whether it was UTF-8."""
    try:
        name, is_text = raw.decode(), b"\0" not in raw
    except UnicodeDecodeError:
        name, is_text = raw.decode(errors="replace"), False
    if keep_dots:
        return name, is_text
    while name.startswith("./"):
        name = name[2:].lstrip("/")
    return name.rstrip("/") or ".", is_text


def apply_extension(kind: bytes, content: bytes, extension: Extension) -> None:
    """Note what a header that extends the next one says.

    Raises:
        BadHeader: a record is wrong, or says something for all members that can
            only be true for one.
    """
    if kind == b"L":
        extension.name = content.partition(b"\0")[0]
        return
    if kind == b"K":
        extension.link = content.partition(b"\0")[0]
        return
    for keyword, value in pax_records(content):
        if keyword.startswith("GNU.sparse."):
            extension.is_sparse = True
        if keyword not in ("path", "linkpath", "size", "GNU.sparse.name"):
            continue
        if kind == b"g":
            raise BadHeader(f"a header for all members sets their {keyword}")
        if keyword == "size":
            text = value.decode("ascii", "replace")
            if not SIZE.fullmatch(text):
                raise BadHeader(f"a pax header gives the size {shown(text)}")
            extension.size = int(text)
        elif keyword == "linkpath":
            extension.link = value
        else:
            extension.name = value


def pax_records(content: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield keyword and value of the records of a pax header: b"LENGTH KEYWORD=VALUE\\n"."""
    position = 0
    while position < len(content):
        match = RECORD.match(content, position)
        stop = position + int(match[1]) if match else 0
        if match is None or stop <= match.end() or content[stop - 1 : stop] != b"\n":
            wrong = shown(content[position : position + 40])
            raise BadHeader(f"a pax header has the invalid record {wrong}")
        yield match[2].decode("utf-8", "replace"), content[match.end() : stop - 1]
        position = stop


def check_padding(file: BinaryIO, position: int, end: int) -> None:
    """Raise BadHeader unless only zeros follow."""
    if end - position > LONGEST_PADDING:
        raise BadHeader(f"a block of zeros, and {end - position:,} bytes more")
    file.seek(position)
    start = position
    while chunk := file.read(2**20):
        rest = chunk.lstrip(b"\0")
        if rest:
            found = position + len(chunk) - len(rest)
            raise BadHeader(
                f"{(found - start) // BLOCK} blocks of zeros, which mark the end, and then other "
                f"bytes (from byte {found:,}): a header was overwritten, or tar files were joined"
            )
        position += len(chunk)
    if position < end:
        raise BadHeader(f"the file ends at byte {position:,}")


def blocks(size: int) -> int:
    """Round up to whole blocks."""
    return -(-size // BLOCK) * BLOCK
