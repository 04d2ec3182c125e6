"""What the footer of a parquet file says about its row groups, read without pyarrow.

pyarrow reads values well, but asking it for the facts about a chunk of a damaged file can end the
process. Format: https://github.com/apache/parquet-format, `parquet.thrift`.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

from dataset.source import Cell
from dataset.stores.remote import RemoteFile
from dataset.table import Root
from dataset.tabular.thrift import DEPTH, Layout, Thrift
from foundation.errors import UserError, one_line, shown

MAGIC, ENCRYPTED = b"PAR1", b"PARE"
MOST_FOOTER = 64 * 2**20  # bytes; about half a million chunks
MOST_PAGE = 2**30  # bytes, decompressed: a page can only be read as a whole
PAGE_HEADERS = (2**9, 2**16, 2**24)  # bytes in which a header of a page is looked for

STATISTICS: Layout = {3: int}  # nulls
# Values, bytes decompressed and stored, first data page, dictionary page, statistics.
COLUMN: Layout = {5: int, 6: int, 7: int, 9: int, 11: int, 12: STATISTICS}
CHUNK: Layout = {3: COLUMN, 8: {}}  # the second says how the chunk is encrypted
GROUP: Layout = {1: [CHUNK], 3: int}  # chunks, rows
ELEMENT: Layout = {4: bytes, 5: int}  # name, number of children
FILE: Layout = {2: [ELEMENT], 4: [GROUP]}
# Kind; bytes decompressed and stored; number of values: data, dictionary, data of version 2.
PAGE: Layout = {1: int, 2: int, 3: int, 5: {1: int}, 7: {1: int}, 8: {1: int}}
DATA_PAGES = (0, 3)  # kinds


class Leaf(NamedTuple):
    """A column of a table, or a field of a column that is a struct."""

    column: str
    field: str = ""

    @property
    def path(self) -> tuple[str, ...]:
        return (self.column, self.field) if self.field else (self.column,)


class Chunk(NamedTuple):
    """The values of a column in a row group.

    Args:
        start: of its first page in the file.
        stored: bytes in the file.
        size: bytes when it is decompressed, as the file says.
        values: how many there are, nulls and empty lists included.
        nulls: None if the file does not say it.
        is_encrypted: the footer says nothing else then.
    """

    start: int
    stored: int
    size: int
    values: int
    nulls: int | None
    is_encrypted: bool = False


class RowGroup(NamedTuple):
    """A row group, with the chunks of all leaves."""

    rows: int
    chunks: list[Chunk]


@dataclass(frozen=True)
class Footer:
    """The row groups of a parquet file.

    Args:
        path: of the file.
        paths: the names from the column down to each leaf, in the order of the chunks.
    """

    path: Root
    paths: list[tuple[str, ...]]
    groups: list[RowGroup]

    def chunks(self, group: int, leaf: Leaf) -> list[Chunk]:
        """Return the chunks of a leaf in a row group; a list or a struct may have several.

        Raises:
            UserError: one is encrypted.
            ValueError: the footer is damaged.
        """
        path = leaf.path
        own = [k for k, each in enumerate(self.paths) if each[: len(path)] == path]
        found: list[Chunk] = []
        for k in own:
            chunk = self.groups[group].chunks[k]
            if chunk.is_encrypted:
                raise encrypted(self.path, f"the column {shown(leaf.column)}")
            if min(chunk.start, chunk.stored, chunk.size, chunk.values) < 0:
                raise ValueError(f"row group {group} has negative sizes of {'.'.join(path)!r}")
            found.append(chunk)
        return found


def read_footer(path: Root) -> Footer:
    """Read the footer of a parquet file.

    Raises:
        UserError: it is encrypted, or too large.
        OSError, ValueError, IndexError: it is damaged.
    """
    with path.open("rb") as file:
        end = file.seek(0, 2)
        if end < 12:
            raise ValueError(f"it has only {end} bytes")
        file.seek(end - 8)
        last = file.read(8)
        if last[4:] == ENCRYPTED:
            raise encrypted(path, "its footer")
        size = int.from_bytes(last[:4], "little")
        if last[4:] != MAGIC or size > end - 12:
            raise ValueError("it does not end as a parquet file does")
        if size > MOST_FOOTER:
            raise UserError(
                f"{one_line(path)} has a footer of {size:,} bytes, and at most {MOST_FOOTER:,} are "
                "read. Write it again with fewer columns, or as several files."
            )
        file.seek(end - 8 - size)
        content = Thrift(file.read(size)).struct(FILE)
    return make_footer(path, content)


@lru_cache(256)
def remote_footer(file: RemoteFile) -> Footer:
    """Read the footer of a file in a store, once in each process."""
    return read_footer(file)


def image_ranges(cell: Cell, most: int) -> list[tuple[int, int]]:
    """Return where in its file the row group of an image in a store begins, and where it ends.

    most: bytes; beyond them a row group is read from front to back.

    Raises:
        UserError: the file cannot be read.
    """
    assert isinstance(cell.file, RemoteFile)
    try:
        footer = remote_footer(cell.file)
        leaf = Leaf(cell.column, "bytes")
        if leaf.path not in footer.paths:
            leaf = Leaf(cell.column)
        chunks = footer.chunks(cell.group, leaf)
    except (OSError, ValueError, IndexError) as error:
        raise UserError(f"{one_line(cell.file)} is damaged ({one_line(error, 300)})") from None
    return [(chunk.start, chunk.start + min(chunk.stored, most)) for chunk in chunks]


def make_footer(path: Root, content: dict[int, Any]) -> Footer:
    """Return the facts in a footer that has been read."""
    paths = leaf_paths(content.get(2, []))
    groups: list[RowGroup] = []
    for number, group in enumerate(content.get(4, [])):
        chunks, rows = group.get(1, []), group.get(3, -1)
        if rows < 0 or len(chunks) != len(paths):
            raise ValueError(f"row group {number} has {rows} rows and {len(chunks)} chunks")
        groups.append(RowGroup(rows, [make_chunk(chunk) for chunk in chunks]))
    return Footer(path, paths, groups)


def make_chunk(content: dict[int, Any]) -> Chunk:
    """Return the facts about a chunk; what is missing is -1."""
    column = content.get(3, {})
    first, dictionary = column.get(9, -1), column.get(11, 0)
    start = dictionary if 0 < dictionary < first else first
    nulls = column.get(12, {}).get(3)
    sizes = (column.get(7, -1), column.get(6, -1), column.get(5, -1))
    return Chunk(start, *sizes, nulls if nulls is not None and nulls >= 0 else None, 8 in content)


def leaf_paths(elements: list[dict[int, Any]]) -> list[tuple[str, ...]]:
    """Return the names from the root down to each leaf; a struct is followed by its fields."""
    paths: list[tuple[str, ...]] = []
    open_structs: list[list[Any]] = []  # path, fields that are still to come
    for number, element in enumerate(elements):
        name = element.get(4, b"").decode()
        children = element.get(5, 0)
        path: tuple[str, ...] = ()
        if number:  # the first one is the root, which has no name
            if not open_structs:
                raise ValueError("its schema has more fields than it says")
            path = (*open_structs[-1][0], name)
            open_structs[-1][1] -= 1
        if len(path) > DEPTH or children < 0:
            raise ValueError(f"its schema has {children} fields in {'.'.join(path)!r}")
        if children or not number:
            open_structs.append([path, children])
        else:
            paths.append(path)
        while open_structs and not open_structs[-1][1]:
            open_structs.pop()
    if open_structs:
        raise ValueError("its schema has fewer fields than it says")
    return paths


def encrypted(path: Root, part: str) -> UserError:
    return UserError(
        f"{one_line(path)}: {part} is encrypted, and no keys are read. Write the table again "
        "without encryption."
    )


# Pages --------------------------------------------------------------------------------------------


class PageSizes(NamedTuple):
    """Bytes of the largest page of a chunk, and of all, when they are decompressed."""

    largest: int
    total: int


def page_sizes(path: Root, chunk: Chunk) -> PageSizes:
    """Return how large the pages of a chunk are.

    This comes from the pages themselves, and decompressing compares it. A value is in one page.

    Raises:
        UserError: a page is too large to be read.
        OSError, ValueError, IndexError: the pages are damaged.
    """
    largest, total, values, position = 0, 0, 0, chunk.start
    with path.open("rb") as file:
        while values < chunk.values and position < chunk.start + chunk.stored:
            header, length = page_header(file, position)
            size, stored = header.get(2, -1), header.get(3, -1)
            if size < 0 or stored < 0:
                raise ValueError(f"the page at byte {position} has {stored} bytes, {size} unpacked")
            if size > MOST_PAGE:
                raise UserError(
                    f"{one_line(path)} has a page of {size:,} bytes at byte {position}, and at "
                    f"most {MOST_PAGE:,} are read at once. Write the table again with row groups "
                    "of 100 rows: row_group_size=100 of pyarrow.parquet.write_table."
                )
            largest, total = max(largest, size), total + size
            if header.get(1) in DATA_PAGES:
                values += max(header.get(5, header.get(8, {})).get(1, 0), 0)
            position += length + stored
    return PageSizes(largest, total)


def page_header(file: Any, position: int) -> tuple[dict[int, Any], int]:
    """Return the header of the page that begins there, and how many bytes it takes."""
    for size in PAGE_HEADERS:
        file.seek(position)
        thrift = Thrift(file.read(size))
        try:
            return thrift.struct(PAGE), thrift.position
        except IndexError:  # a header with long statistics
            continue
    raise ValueError(f"there is no page at byte {position}")
