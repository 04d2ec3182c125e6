"""Parquet and Arrow files: their columns, and reading them group by group through pyarrow.

A group is a row group of a parquet file, or a record batch of an Arrow file, as `save_to_disk` of
Hugging Face's datasets writes them. Arrow files are mapped into memory; parquet files are read.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

from dataset.captions.rows import LANGUAGES, WEIGHTS
from dataset.source import MissingLibrary
from dataset.stores.remote import RemoteFile
from dataset.table import Root
from dataset.tabular.columns import Column
from dataset.tabular.footer import Leaf, PageSizes, page_sizes, read_footer
from foundation.errors import MissingFileError, UserError, one_line
from foundation.json_reading import load_json

PARQUET_SUFFIXES = frozenset((".parquet", ".parq", ".pq"))
ARROW_SUFFIXES = frozenset((".arrow", ".feather", ".ipc"))
IMAGES_AT_ONCE = 16  # rows of images that are decoded together
ROWS_AT_ONCE = 4096  # rows of captions
BYTES_AT_ONCE = 128 * 2**20  # if each value were as long as the largest page
FEW_ROWS = 2**20  # any table may have so many; more only if the file has as many bytes
OPEN_FILES = 256
GROUPS_AHEAD = 8  # row groups in a store whose captions are fetched in advance


class TableRow(NamedTuple):
    """A row as the table has it."""

    group: int
    row: int  # in the file
    path: Any  # what the column of images says about the file; None if there is nothing
    is_embedded: bool  # the image's bytes lie in the table
    caption: Any
    weights: Any = None
    languages: Any = None


@dataclass(frozen=True)
class ImageColumn:
    """The images of a group in memory."""

    batches: list[Any]  # arrays of bytes

    @cached_property
    def size(self) -> int:
        return sum(batch.nbytes for batch in self.batches)

    @cached_property
    def ends(self) -> list[int]:
        return list(accumulate(map(len, self.batches)))

    def value(self, row: int) -> bytes | None:
        """Return the bytes of a row, counted from the beginning of the group."""
        for end, batch in zip(self.ends, self.batches, strict=True):
            if row < end:
                return batch[row - end + len(batch)].as_py()
        raise OSError(f"the row group has only {sum(map(len, self.batches))} rows")


class ColumnarFile:
    """A parquet or Arrow file, open to be read by groups."""

    is_mapped = False  # the system reads what is needed, and images in memory take none

    def __init__(self, path: Root, schema: Any, lengths: list[int]):
        self.path, self.schema = path, schema
        self.firsts = [0, *accumulate(lengths)]
        if len(self) > max(FEW_ROWS, path.stat().st_size):
            raise ValueError(f"it says that it has {len(self):,} rows, more than it has bytes")

    def __len__(self) -> int:
        return self.firsts[-1]

    @property
    def groups(self) -> range:
        return range(len(self.firsts) - 1)

    def first_row(self, group: int) -> int:
        if group not in self.groups:
            raise OSError(f"the file has only {len(self.groups)} row groups")
        return self.firsts[group]

    def group_length(self, group: int) -> int:
        return self.firsts[group + 1] - self.firsts[group]

    @cached_property
    def columns(self) -> list[Column]:
        classes = class_names(self.schema.metadata)
        with damage_as_error(self.path):
            return [describe_column(field, classes.get(field.name, ())) for field in self.schema]

    def group_bytes(self, group: int, column: str) -> int:
        """Return about how much memory the images of a group take."""
        return self.leaf_bytes(group, self.image_leaf(column))

    def leaf_bytes(self, group: int, leaf: Leaf) -> int:
        """Return how many bytes a column of a group has once it is decompressed, as it says."""
        raise NotImplementedError

    def batches(self, group: int, leaves: list[Leaf], rows: int) -> Iterator[Any]:
        """Yield record batches with these columns, or fields of columns.

        rows: at most in a batch; less if they may take too much memory.
        """
        raise NotImplementedError

    def expect_next(self, group: int, leaves: list[Leaf]) -> None:
        """Begin to fetch the groups behind this one, if they are in a store."""

    def nulls(self, group: int, leaf: Leaf) -> int | None:
        """Return how many values of a group are null; None if the file does not say it."""
        raise NotImplementedError

    def image_leaf(self, column: str) -> Leaf:
        """Return where the bytes of images lie."""
        kinds = {each.name: each.kind for each in self.columns}
        if column not in kinds:
            raise OSError(f"there is no column {column!r} any more")
        return Leaf(column, "bytes" if kinds[column] == "image" else "")

    def stream_images(self, group: int, column: str) -> Iterator[list[bytes | None]]:
        """Yield the images of a group, a few at a time."""
        for array in self.image_arrays(group, column):
            yield array.to_pylist()

    def read_images(self, group: int, column: str, most: float) -> ImageColumn | None:
        """Read all images of a group; None if they have more bytes than `most`.

        The file does not say it: an image that is in many rows may be in the file once.
        """
        arrays: list[Any] = []
        for array in self.image_arrays(group, column):
            most -= array.nbytes
            if most < 0:
                return None
            arrays.append(array)
        return ImageColumn(arrays)

    def read_shared(self, group: int, column: str, most: float) -> ImageColumn | None:
        """Read all images of a group, each once however many rows have it; None if it cannot be."""
        return None

    def image_arrays(self, group: int, column: str) -> Iterator[Any]:
        leaf = self.image_leaf(column)
        with damage_as_error(self.path):
            for batch in self.batches(group, [leaf], IMAGES_AT_ONCE):
                yield leaf_array(batch, leaf)

    def rows(self, image: Column, caption: Column | None) -> Iterator[TableRow]:
        """Yield all rows without the bytes of the images.

        Raises:
            UserError: the file is damaged.
        """
        with damage_as_error(self.path):
            for group in self.groups:
                yield from self.group_rows(group, image, caption)

    def group_rows(self, group: int, image: Column, caption: Column | None) -> Iterator[TableRow]:
        bytes_leaf = None if image.kind == "text" else self.image_leaf(image.name)
        path_leaf = None
        if image.kind == "text":
            path_leaf = Leaf(image.name)
        elif image.kind == "image" and has_path(self.schema.field(image.name)):
            path_leaf = Leaf(image.name, "path")
        caption_leaf = Leaf(caption.name) if caption else None
        all_there = bytes_leaf is not None and self.nulls(group, bytes_leaf) == 0
        unsure = bytes_leaf if not all_there else None
        there = self.schema.names
        marks = [Leaf(name) if name in there else None for name in (WEIGHTS, LANGUAGES)]
        of_rows = (path_leaf, caption_leaf, *marks)
        leaves = list(dict.fromkeys(leaf for leaf in (*of_rows, unsure) if leaf))
        row = self.firsts[group]
        if not leaves:
            for number in range(row, self.firsts[group + 1]):
                yield TableRow(group, number, None, True, None)
            return
        self.expect_next(group, leaves)
        for batch in self.batches(group, leaves, IMAGES_AT_ONCE if unsure else ROWS_AT_ONCE):
            count = batch.num_rows
            content = (
                values(leaf_array(batch, leaf)) if leaf else [None] * count for leaf in of_rows
            )
            known = leaf_array(batch, unsure).is_valid().to_pylist() if unsure else None
            known = known or [bytes_leaf is not None] * count
            for is_embedded, path, *rest in zip(known, *content, strict=True):
                yield TableRow(group, row, path, is_embedded, *rest)
                row += 1
        if row != self.firsts[group + 1]:
            raise OSError(f"row group {group} ends before row {row} of {self.firsts[group + 1]}")


class ParquetFile(ColumnarFile):
    def __init__(self, path: Root):
        self.footer = read_footer(path)  # pyarrow can abort when it is asked about its chunks
        self.metadata = parquet(path).metadata
        schema = self.metadata.schema.to_arrow_schema()
        super().__init__(path, schema, [group.rows for group in self.footer.groups])
        self.pages: dict[tuple[int, Leaf], PageSizes] = {}

    def leaf_bytes(self, group: int, leaf: Leaf) -> int:
        with damage_as_error(self.path):
            return sum(chunk.size for chunk in self.footer.chunks(group, leaf))

    def nulls(self, group: int, leaf: Leaf) -> int | None:
        with damage_as_error(self.path):
            counts = [chunk.nulls for chunk in self.footer.chunks(group, leaf)]
        known = [count for count in counts if count is not None]
        return sum(known) if counts and len(known) == len(counts) else None

    def batches(self, group: int, leaves: list[Leaf], rows: int) -> Iterator[Any]:
        largest = max(self.largest_page(group, leaf) for leaf in leaves)
        rows = max(min(rows, BYTES_AT_ONCE // max(largest, 1)), 1)
        names = [".".join(leaf.path) for leaf in leaves]
        file = parquet(self.path, self.metadata)
        yield from file.iter_batches(rows, row_groups=[group], columns=names, use_threads=False)

    def expect_next(self, group: int, leaves: list[Leaf]) -> None:
        if not isinstance(self.path, RemoteFile):
            return
        for number in range(group + 1, min(group + 1 + GROUPS_AHEAD, len(self.groups))):
            for leaf in leaves:
                for chunk in self.footer.chunks(number, leaf):
                    end = chunk.start + min(chunk.stored, BYTES_AT_ONCE // GROUPS_AHEAD)
                    self.path.fetch_ahead(chunk.start, end)

    def largest_page(self, group: int, leaf: Leaf) -> int:
        """Return the most bytes that one value may have: a value in all rows may be there once.

        Of large groups in stores the pages are not looked for, since that would read all of them.
        """
        if isinstance(self.path, RemoteFile) and self.leaf_bytes(group, leaf) > BYTES_AT_ONCE:
            return BYTES_AT_ONCE
        if (group, leaf) not in self.pages:
            chunks = self.footer.chunks(group, leaf)
            sizes = [page_sizes(self.path, chunk) for chunk in chunks]
            largest = max((each.largest for each in sizes), default=0)
            self.pages[group, leaf] = PageSizes(largest, sum(each.total for each in sizes))
        return self.pages[group, leaf].largest

    def read_shared(self, group: int, column: str, most: float) -> ImageColumn | None:
        leaf = self.image_leaf(column)
        with damage_as_error(self.path):
            self.largest_page(group, leaf)
            if (group, leaf) not in self.pages or self.pages[group, leaf].total > most:
                return None
            name = ".".join(leaf.path)
            file = parquet(self.path, self.metadata, [name])
            rows = max(self.group_length(group), 1)
            batches = file.iter_batches(rows, row_groups=[group], columns=[name], use_threads=False)
            found = ImageColumn([leaf_array(batch, leaf) for batch in batches])
        return found if found.size <= most else None


class ArrowFile(ColumnarFile):
    """An Arrow file, in the format for files or in that for streams."""

    is_mapped = True

    def __init__(self, path: Root):
        pa = import_pyarrow()
        memory = pa.memory_map(str(path))
        before = pa.total_allocated_bytes()
        try:
            reader = pa.ipc.open_file(memory)
            self.record_batches = [reader.get_batch(k) for k in range(reader.num_record_batches)]
        except pa.ArrowInvalid:
            memory.seek(0)
            reader = pa.ipc.open_stream(memory)
            self.record_batches = list(reader)
        if pa.total_allocated_bytes() - before > memory.size() // 2 + 2**20:
            raise UserError(
                f"{one_line(path)} is compressed, so no image in it can be read alone. Save it "
                "without compression, or as parquet."
            )
        for batch in self.record_batches:
            if batch.num_rows < 0:
                raise ValueError(f"a record batch has {batch.num_rows} rows")
        super().__init__(path, reader.schema, [batch.num_rows for batch in self.record_batches])

    def leaf_bytes(self, group: int, leaf: Leaf) -> int:
        return 0

    def nulls(self, group: int, leaf: Leaf) -> int | None:
        with damage_as_error(self.path):
            return leaf_array(self.record_batches[group], leaf).null_count

    def image_arrays(self, group: int, column: str) -> Iterator[Any]:
        yield leaf_array(self.record_batches[group], self.image_leaf(column))

    def batches(self, group: int, leaves: list[Leaf], rows: int) -> Iterator[Any]:
        yield self.record_batches[group]


@lru_cache(OPEN_FILES)
def open_columnar(path: Root) -> ColumnarFile:
    """Open a parquet or an Arrow file, by its ending.

    Raises:
        MissingLibrary: pyarrow is not installed.
        MissingFileError, UserError: the file is missing, or damaged.
    """
    if isinstance(path, Path) and not path.is_file():
        raise MissingFileError(f"there is no file {one_line(path)}.")
    with damage_as_error(path):
        return ParquetFile(path) if path.suffix.lower() in PARQUET_SUFFIXES else ArrowFile(path)


def parquet(path: Root, metadata: Any = None, shared: list[str] | None = None) -> Any:
    """Open a parquet file so that only the pages which are asked for are in memory.

    shared: columns in which equal values are to be in memory once.
    """
    import_pyarrow()
    from pyarrow import parquet

    if isinstance(path, RemoteFile):
        file, is_mapped = path.open(), False
    else:
        file, is_mapped = path, True
    return parquet.ParquetFile(
        file,
        metadata=metadata,
        memory_map=is_mapped,
        pre_buffer=False,
        read_dictionary=shared,
    )


def import_pyarrow() -> Any:
    """Return the module pyarrow."""
    try:
        import pyarrow
        import pyarrow.ipc
    except ModuleNotFoundError as error:
        raise MissingLibrary(
            "reading parquet and Arrow files needs the Python package pyarrow, which is not "
            "installed. Run: pip install pyarrow"
        ) from error
    return pyarrow


class DamagedTable(UserError, OSError):
    """A parquet or Arrow file that cannot be read, or has changed while it is read."""


@contextmanager
def damage_as_error(path: Root) -> Iterator[None]:
    """Turn what pyarrow raises for a damaged file into an error that names the file."""
    pa = import_pyarrow()
    try:
        yield
    except (pa.ArrowException, OSError, ValueError, KeyError, IndexError, OverflowError) as error:
        if isinstance(error, UserError):
            raise
        raise DamagedTable(
            f"{one_line(path)} is damaged, or no {path.suffix.lower().lstrip('.')} file "
            f"({one_line(error, 300)}). Fetch or write it again."
        ) from None


# Columns ------------------------------------------------------------------------------------------


def describe_column(field: Any, classes: tuple[str, ...]) -> Column:
    """Return what a column of this type can be used for."""
    pa = import_pyarrow()
    types, kind = pa.types, field.type
    is_text = types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)
    if types.is_dictionary(kind):
        is_text = types.is_string(kind.value_type) or types.is_large_string(kind.value_type)
    is_list = types.is_list(kind) or types.is_large_list(kind)
    texts = is_list and (types.is_string(kind.value_type) or types.is_large_string(kind.value_type))
    name, shown = str(field.name), one_line(kind, 60)
    if types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        return Column(name, "image" if is_bytes(kind.field("bytes").type) else "other", shown)
    if is_bytes(kind):
        return Column(name, "bytes", shown)
    if is_text or texts:
        return Column(name, "text" if is_text else "texts", shown)
    if types.is_integer(kind) and classes:
        return Column(name, "classes", shown, classes)
    return Column(name, "other", shown)


def is_bytes(kind: Any) -> bool:
    types = import_pyarrow().types
    if types.is_dictionary(kind):
        kind = kind.value_type
    return bool(types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind))


def has_path(field: Any) -> bool:
    return field.type.get_field_index("path") >= 0


def class_names(metadata: dict[bytes, bytes] | None) -> dict[str, tuple[str, ...]]:
    """Return column -> names of its classes, as Hugging Face's datasets note them in the file."""
    try:
        content: Any = load_json((metadata or {}).get(b"huggingface", b"{}"))
        features = content["info"]["features"]
        return {
            name: tuple(map(str, feature["names"]))
            for name, feature in features.items()
            if isinstance(feature, dict) and feature.get("_type") == "ClassLabel"
        }
    except (UserError, KeyError, TypeError, AttributeError):
        return {}  # it is a note next to the data


def leaf_array(batch: Any, leaf: Leaf) -> Any:
    """Return the column of a record batch, or a field of it; null where the struct is null.

    Raises:
        pyarrow.ArrowInvalid: the values lie outside of the file. pyarrow itself believes what the
            file says about them, and would read whatever is in memory there, or crash.
    """
    array = checked(batch.column(leaf.column))
    if not leaf.field:
        return array
    import pyarrow.compute as pc

    return pc.struct_field(array, leaf.field)  # pyright: ignore[reportAttributeAccessIssue]


def checked(array: Any) -> Any:
    """Return an array whose values all lie in its memory; what text is not UTF-8 is found later."""
    array.validate()
    array.view(without_text(array.type)).validate(full=True)
    return array


def without_text(kind: Any) -> Any:
    """Return the type that has bytes in all places where this one has text."""
    pa = import_pyarrow()
    types = pa.types
    for is_text, binary in (
        (types.is_string, pa.binary()),
        (types.is_large_string, pa.large_binary()),
        (types.is_string_view, pa.binary_view()),
    ):
        if is_text(kind):
            return binary
    if types.is_list(kind) or types.is_large_list(kind):
        inner = pa.field(kind.value_field.name, without_text(kind.value_type))
        return pa.list_(inner) if types.is_list(kind) else pa.large_list(inner)
    if types.is_struct(kind):
        return pa.struct([pa.field(field.name, without_text(field.type)) for field in kind])
    if types.is_dictionary(kind):
        return pa.dictionary(kind.index_type, without_text(kind.value_type), kind.ordered)
    return kind


def values(array: Any) -> list[Any]:
    """Return the values of an array; text that is not UTF-8 is left as bytes."""
    try:
        return array.to_pylist()
    except UnicodeDecodeError:
        return [value_or_bytes(value) for value in array]


def value_or_bytes(value: Any) -> Any:
    try:
        return value.as_py()
    except UnicodeDecodeError:
        return b"not UTF-8"
