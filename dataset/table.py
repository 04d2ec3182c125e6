"""Image-text pairs as columns, memory-mapped from the disk: few bytes of memory per image.

A table has a row for each image. Names and captions lie end to end in one array of bytes each; all
other facts lie in one array per column. `PairList` is a selection of rows that behaves like a list
of `Pair`.
"""

import hashlib
import json
from abc import ABC, abstractmethod
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TypedDict, overload
from unicodedata import normalize

import numpy as np
from jaxtyping import Bool, Float64, Int, Int64, Shaped, UInt8, UInt16

from dataset.captions.rows import Caption, MarkedCaption, captions_hash, text_of
from dataset.source import Cell, Member, Source
from dataset.stores.remote import RemoteFile
from foundation.errors import UserError
from foundation.files import read_json
from foundation.json_reading import from_json

Root = Path | RemoteFile  # the folder that holds the images or the shards
CAPTION_MARKS = ("caption_weights", "caption_languages")  # arrays that few tables have
NO_CAPTION = ("",)  # the captions of an image without any: it is trained on the empty text
TAKEN_AT_ONCE = 65536  # rows; a copy of a column of all rows may take gigabytes
COLUMNS = {  # name -> (dtype, shape of an entry); also the names of the files on the disk
    "sha256": ("u1", (32,)),  # of the file's bytes
    "captions_hash": ("u1", (16,)),
    "place": ("<f8", ()),  # hash of the name, in [0, 1); `split` holds out the lowest ones
    "size": ("<i8", ()),  # of the file, in bytes
    "mtime_ns": ("<i8", ()),  # of the file, or of the tar file that holds it
    "offset": ("<i8", ()),  # in the tar file; or `Cell.position`
    "shard": ("<i4", ()),  # row of `Table.shards`; -1: the image is a file of its own
    "width": ("<i4", ()),
    "height": ("<i4", ()),
    "mode": ("<i4", ()),  # row of `Table.modes`
}
ARRAYS = ("names", "name_starts", "captions", "text_starts", "caption_starts", *COLUMNS)


class FileStamp(TypedDict):
    """Where a file lies and when it was changed: if all are equal, it is the same file."""

    size: int
    mtime_ns: int
    shard: int
    offset: int


class ImageFacts(FileStamp):
    """The columns of `Table` that follow neither from the image's name nor from its captions."""

    width: int
    height: int
    sha256: bytes


@dataclass(frozen=True)
class Pair:
    """An image and its captions, at least one; NO_CAPTION if it has none."""

    path: Source
    captions: tuple[str, ...]


class ComputedStrings(Sequence[str], ABC):
    """Strings that are made when they are asked for; a slice of them is a list."""

    @abstractmethod
    def string(self, k: int) -> str:
        """Return one of the strings."""

    @overload
    def __getitem__(self, k: int) -> str: ...
    @overload
    def __getitem__(self, k: slice) -> list[str]: ...
    def __getitem__(self, k: int | slice) -> str | list[str]:
        if isinstance(k, slice):
            return [self.string(j) for j in range(len(self))[k]]
        return self.string(k)


class PackedStrings(ComputedStrings):
    """Strings in one array of bytes, each followed by a line break that does not belong to it."""

    def __init__(
        self, data: UInt8[np.ndarray, " bytes"], starts: Int64[np.ndarray, " strings_plus_1"]
    ):
        self.data, self.starts = data, starts

    def __len__(self) -> int:
        return len(self.starts) - 1

    def string(self, k: int) -> str:
        return self.data[self.starts[k] : self.starts[k + 1] - 1].tobytes().decode()

    def take(self, rows: Int[np.ndarray, " taken"]) -> "PackedStrings":
        """Return the strings of these rows, in this order."""
        data = np.empty(int((self.starts[rows + 1] - self.starts[rows]).sum()), np.uint8)
        starts = np.zeros(len(rows) + 1, np.int64)
        for first in range(0, len(rows), TAKEN_AT_ONCE):
            some = rows[first : first + TAKEN_AT_ONCE]
            positions, own = ranges(self.starts, some)
            own += starts[first]
            data[own[0] : own[-1]] = self.data[positions]
            starts[first : first + len(own)] = own
        return PackedStrings(data, starts)


def ranges(
    starts: Int64[np.ndarray, " n_plus_1"], rows: Int[np.ndarray, " rows"]
) -> tuple[Int64[np.ndarray, " items"], Int64[np.ndarray, " rows_plus_1"]]:
    """Return the items of these rows one after the other, and where those of each row begin.

    starts: where the items of each row begin; those of row k end where those of row k + 1 begin.
    """
    first = np.asarray(starts[rows])
    counts = starts[rows + 1] - first
    own = np.zeros(len(rows) + 1, np.int64)
    np.cumsum(counts, out=own[1:])
    items = np.repeat(first - own[:-1], counts)
    items += np.arange(len(items))
    return items, own


@dataclass(frozen=True)
class TableLists:
    """The content of table.json."""

    shards: tuple[str, ...]
    modes: tuple[str, ...]
    image_column: str = ""
    is_trusted: bool = False
    caption_marks: tuple[str, ...] = ()
    languages: tuple[str, ...] = ()

    def write(self, folder: Path) -> None:
        """Write table.json; what most tables do not have is left out."""
        content = {"shards": self.shards, "modes": self.modes, "image_column": self.image_column}
        if self.is_trusted:
            content["is_trusted"] = True
        if self.caption_marks:
            content |= {"caption_marks": self.caption_marks, "languages": self.languages}
        text = json.dumps(content, ensure_ascii=False)
        (folder / "table.json").write_text(text, encoding="utf-8")


@dataclass(frozen=True, eq=False)
class Table:
    """The facts about all images of a data folder, one row per image.

    Args:
        root: the data folder.
        shards: tar files, or tables that hold the images, relative to the root; empty where every
            image is a file of its own.
        modes: the kinds of pixels that occur, as `inspect_image` names them.
        names: of the images, relative to the root; in a shard, behind the shard's name.
        captions: those of the first image, then those of the second, ...
        caption_starts: where the captions of each image begin.
        caption_weights: how much more often than others of its image each caption is drawn; None
            if all are 1.
        caption_languages: row of `languages` of each caption; None if no language is known.
        languages: the first is "", that of captions whose language is not known.
        columns: arrays by the names in COLUMNS.
        folder: where the table is saved and memory-mapped from; None if it is only in memory.
        image_column: of the tables in `shards`; "" if these are tar files.
        is_trusted: hashes are those that the shards state. Each image is compared with its own when
            it is read.
    """

    root: Root
    shards: tuple[str, ...]
    modes: tuple[str, ...]
    names: PackedStrings
    captions: Sequence[str]
    caption_starts: Int64[np.ndarray, " images_plus_1"]
    columns: dict[str, Shaped[np.ndarray, "images ..."]]
    folder: Path | None = None
    image_column: str = ""
    is_trusted: bool = False
    caption_weights: Float64[np.ndarray, " captions"] | None = None
    caption_languages: UInt16[np.ndarray, " captions"] | None = None
    languages: tuple[str, ...] = ()

    def save(self, folder: Path) -> None:
        """Write all arrays into an existing folder."""
        for name, values in self.arrays().items():
            np.save(folder / f"{name}.npy", values)
        self.lists().write(folder)

    def lists(self) -> TableLists:
        """Return what table.json holds."""
        kept = (self.shards, self.modes, self.image_column, self.is_trusted)
        return TableLists(*kept, tuple(self.marks()), self.languages)

    def marks(self) -> dict[str, Shaped[np.ndarray, " captions"]]:
        """Return the arrays of weights and languages, as far as there are any."""
        marks = {name: getattr(self, name) for name in CAPTION_MARKS}
        return {name: values for name, values in marks.items() if values is not None}

    def arrays(self) -> dict[str, Shaped[np.ndarray, "..."]]:
        """Return all arrays by the names of their files."""
        assert isinstance(self.captions, PackedStrings), "only what has been read is saved"
        return {
            "names": self.names.data,
            "name_starts": self.names.starts,
            "captions": self.captions.data,
            "text_starts": self.captions.starts,
            "caption_starts": self.caption_starts,
            **self.columns,
            **self.marks(),
        }

    @classmethod
    def open(cls, folder: Path, root: Root) -> "Table":
        """Memory-map a saved table.

        Raises:
            OSError, ValueError, EOFError: it is not there, or damaged.
        """
        lists = from_json(TableLists, read_json(folder / "table.json"), folder / "table.json")
        marks = set(lists.caption_marks) & set(CAPTION_MARKS)
        names = (*ARRAYS, *marks)
        arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in names}
        return cls.from_arrays(root, lists, arrays, folder)

    @classmethod
    def from_arrays(
        cls,
        root: Root,
        lists: TableLists,
        arrays: Mapping[str, Shaped[np.ndarray, "..."]],
        folder: Path | None = None,
    ) -> "Table":
        """Return the table that consists of these arrays, by the names of their files."""
        return cls(
            root,
            lists.shards,
            lists.modes,
            PackedStrings(arrays["names"], arrays["name_starts"]),
            PackedStrings(arrays["captions"], arrays["text_starts"]),
            arrays["caption_starts"],
            {name: arrays[name] for name in COLUMNS},
            folder,
            lists.image_column,
            lists.is_trusted,
            arrays.get("caption_weights"),
            arrays.get("caption_languages"),
            lists.languages,
        )

    def __reduce__(self) -> tuple:
        """Pickle the folder's path only; other processes memory-map the files again."""
        if self.folder is not None:
            return Table.open, (self.folder, self.root)
        return Table, tuple(getattr(self, field.name) for field in fields(self))

    def __len__(self) -> int:
        return len(self.names)

    def pair(self, row: int) -> Pair:
        """Return the image and the captions of a row."""
        first, end = self.caption_starts[row : row + 2].tolist()
        return Pair(self.path(row), tuple(self.captions[k] for k in range(first, end)))

    def path(self, row: int) -> Source:
        """Return where the image of a row lies."""
        name, shard = self.names[row], int(self.columns["shard"][row])
        if shard < 0:
            return self.root / name
        file = self.shards[shard]
        offset, size = int(self.columns["offset"][row]), int(self.columns["size"][row])
        path = self.root / file
        if isinstance(path, RemoteFile):
            path = path.pinned(int(self.columns["mtime_ns"][row]))
        if self.image_column:
            return Cell.at(path, offset, self.image_column, name)
        sha256 = self.columns["sha256"][row].tobytes() if self.is_trusted else None
        return Member(path, name.removeprefix(f"{file}/"), offset, size, sha256)

    def take(self, rows: Int[np.ndarray, " images"]) -> "Table":
        """Return a table in memory that has these rows, in this order."""
        assert isinstance(self.captions, PackedStrings), "only what has been read is taken"
        captions, starts = ranges(self.caption_starts, rows)
        marks = (getattr(self, name) for name in CAPTION_MARKS)
        weights, languages = (values if values is None else values[captions] for values in marks)
        return Table(
            self.root,
            self.shards,
            self.modes,
            self.names.take(rows),
            self.captions.take(captions),
            starts,
            {name: values[rows] for name, values in self.columns.items()},
            image_column=self.image_column,
            is_trusted=self.is_trusted,
            caption_weights=weights,
            caption_languages=languages,
            languages=self.languages,
        )

    @property
    def pairs(self) -> "PairList":
        """All rows."""
        return PairList(self, np.arange(len(self), dtype=smallest_int(len(self))))


class PairList(Sequence[Pair]):
    """A selection of rows of a table, in any order; a slice of it is a selection again."""

    def __init__(self, table: Table, rows: Int[np.ndarray, " pairs"]):
        self.table, self.rows = table, rows

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, k: int) -> Pair: ...
    @overload
    def __getitem__(self, k: slice) -> "PairList": ...
    def __getitem__(self, k: int | slice) -> "Pair | PairList":  # pyright: ignore[reportIncompatibleMethodOverride]
        if isinstance(k, slice):
            return PairList(self.table, self.rows[k])
        return self.table.pair(int(self.rows[k]))

    def __iter__(self) -> Iterator[Pair]:
        return (self.table.pair(row) for row in self.rows.tolist())

    def __add__(self, other: "PairList") -> "PairList":
        assert self.table is other.table, "both selections must be of the same data folder"
        return PairList(self.table, np.concatenate([self.rows, other.rows]))

    @property
    def paths(self) -> "Paths":
        """Where the images lie."""
        return Paths(self)

    def column(self, name: str) -> Shaped[np.ndarray, "pairs ..."]:
        """Return one of COLUMNS for these pairs."""
        return self.table.columns[name][self.rows]

    def compute(
        self, function: Callable[..., Shaped[np.ndarray, " _"]], dtype: type, *columns: str
    ) -> Shaped[np.ndarray, " pairs"]:
        """Return a number for each pair, which a function computes from columns piece by piece."""
        result = np.empty(len(self), dtype)
        for start, pieces in self.pieces(*columns):
            result[start : start + len(pieces[0])] = function(*pieces)
        return result

    def pieces(self, *columns: str) -> Iterator[tuple[int, list[Shaped[np.ndarray, "piece ..."]]]]:
        """Yield columns of some thousand pairs at a time, and the number of the first pair."""
        for start in range(0, len(self), TAKEN_AT_ONCE):
            rows = self.rows[start : start + TAKEN_AT_ONCE]
            yield start, [self.table.columns[name][rows] for name in columns]

    def where(self, mask: Bool[np.ndarray, " pairs"]) -> "PairList":
        """Return the pairs for which the mask is true."""
        return PairList(self.table, self.rows[mask])


class Paths(Sequence[Source]):
    """Where the images of pairs lie, read from the table when they are asked for."""

    def __init__(self, pairs: PairList):
        self.pairs = pairs

    def __len__(self) -> int:
        return len(self.pairs)

    @overload
    def __getitem__(self, k: int) -> Source: ...
    @overload
    def __getitem__(self, k: slice) -> "Paths": ...
    def __getitem__(self, k: int | slice) -> "Source | Paths":
        if isinstance(k, slice):
            return Paths(self.pairs[k])
        return self.pairs.table.path(int(self.pairs.rows[k]))


class TableBuilder:
    """Collects the rows of a table in compact arrays."""

    def __init__(self):
        self.names, self.captions = bytearray(), bytearray()
        self.name_starts, self.text_starts, self.caption_starts = (
            array("q", [0]) for _ in range(3)
        )
        self.modes: dict[str, int] = {}
        self.columns = {name: bytearray() for name in COLUMNS}
        self.weights, self.languages = array("d"), array("H")  # of the captions up to some of them
        self.language_rows: dict[str, int] = {"": 0}

    def add(self, name: str, captions: Sequence[Caption], facts: ImageFacts, mode: str) -> None:
        """Add the row of an image; mode: the kind of its pixels, as `inspect_image` names it."""
        self.names += name.encode() + b"\n"
        self.name_starts.append(len(self.names))
        for caption in captions:
            self.captions += text_of(caption).encode() + b"\n"
            self.text_starts.append(len(self.captions))
            if isinstance(caption, MarkedCaption):
                self.fill_marks()
                self.weights[-1] = caption.weight
                rows = self.language_rows
                self.languages[-1] = rows.setdefault(caption.language, len(rows))
        self.caption_starts.append(len(self.text_starts) - 1)
        derived = {
            "captions_hash": captions_hash(captions),
            "place": np.float64(name_hash(name)).tobytes(),
            "mode": self.modes.setdefault(mode, len(self.modes)),
        }
        for column, value in (facts | derived).items():
            if isinstance(value, int):
                value = value.to_bytes(int(COLUMNS[column][0][2:]), "little", signed=True)
            assert isinstance(value, bytes)
            self.columns[column] += value

    def fill_marks(self) -> None:
        """Give a weight of 1 and no language to the captions since the last one with marks."""
        missing = len(self.text_starts) - 1 - len(self.weights)
        self.weights.extend(array("d", [1.0]) * missing)
        self.languages.extend(array("H", [0]) * missing)

    def build(
        self,
        root: Root,
        shards: Iterable[str] = (),
        image_column: str = "",
        is_trusted: bool = False,
    ) -> Table:
        """Make a table of the rows so far; while it is in use, no rows can be added."""
        columns = {
            name: np.frombuffer(self.columns[name], dtype).reshape(-1, *shape)
            for name, (dtype, shape) in COLUMNS.items()
        }
        if self.weights:
            self.fill_marks()
        weights, languages = np.array(self.weights), np.array(self.languages, np.uint16)
        return Table(
            root,
            tuple(shards),
            tuple(self.modes),
            PackedStrings(np.frombuffer(self.names, np.uint8), to_numpy(self.name_starts)),
            PackedStrings(np.frombuffer(self.captions, np.uint8), to_numpy(self.text_starts)),
            to_numpy(self.caption_starts),
            columns,
            image_column=image_column,
            is_trusted=is_trusted,
            caption_weights=weights if (weights != 1).any() else None,
            caption_languages=languages if languages.any() else None,
            languages=tuple(self.language_rows),
        )


def smallest_int(count: int) -> type[np.int32] | type[np.int64]:
    """Return the type that holds the numbers of so many rows in the least memory."""
    return np.int32 if count < 2**31 else np.int64


def to_numpy(values: "array[int]") -> Int64[np.ndarray, " n"]:
    """View an array of 64-bit integers as a numpy array."""
    return np.frombuffer(values, np.int64)


def name_hash(name: str) -> float:
    """Hash an image's relative name to a number in [0, 1)."""
    digest = hashlib.sha256(normalize("NFC", name).encode()).digest()
    return int.from_bytes(digest[:8]) / 2**64


def split(pairs: PairList, fraction: float) -> tuple[PairList, PairList]:
    """Split pairs into (training, held out): about `fraction` is held out, and at least one pair.

    A hash of the image's relative name decides. So the split is the same in every stage and on
    every machine, and images that are added later do not move earlier ones to the other side.

    Raises:
        UserError: the fraction is not in [0, 1), or there is only one pair to split.
    """
    if not 0 <= fraction < 1:
        raise UserError(f"the held-out fraction is {fraction}; it must lie in [0, 1).")
    if fraction == 0:
        return pairs, pairs[:0]
    if len(pairs) < 2:
        raise UserError(
            f"{pairs.table.root} has {len(pairs)} image; holding one out leaves none to train on. "
            "Add images, or hold out nothing: held_out 0."
        )
    held_out = pairs.compute(lambda places: places < fraction, bool, "place")
    if not held_out.any():
        held_out[pairs.column("place").argmin()] = True
    elif held_out.all():
        held_out[pairs.column("place").argmax()] = False
    return pairs.where(~held_out), pairs.where(held_out)
