"""Image-text pairs as columns, memory-mapped from disk: a million take a few bytes of memory each.

A table has a row for each image. Names and captions lie end to end in one array of bytes each, all
other facts in one array per column. `Pairs` is a choice of rows that behaves like a list of `Pair`.
"""

import hashlib
import json
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from unicodedata import normalize

import numpy as np
from jaxtyping import Int64, Shaped, UInt8

from dataset.members import Member, Source

NO_CAPTION = ("",)  # what an image without a caption is trained on: the null text
COLUMNS = {
    "sha256": ("u1", (32,)),  # of the file's bytes
    "captions_hash": ("u1", (16,)),
    "place": ("<f8", ()),  # in [0, 1), by the name alone: who is held out
    "size": ("<i8", ()),  # of the file, in bytes
    "mtime_ns": ("<i8", ()),  # of the file, or of the tar file it is in
    "offset": ("<i8", ()),  # in its tar file
    "shard": ("<i4", ()),  # which tar file; -1: a file of its own
    "width": ("<i4", ()),
    "height": ("<i4", ()),
    "mode": ("<i4", ()),  # row of `Table.modes`
}


@dataclass(frozen=True)
class Pair:
    """An image and its captions, at least one; NO_CAPTION if it has none."""

    path: Source
    captions: tuple[str, ...]


class Strings(Sequence[str]):
    """Strings end to end, each followed by a line break that is no part of it."""

    def __init__(self, data: UInt8[np.ndarray, " bytes"], starts: Int64[np.ndarray, " strings_1"]):
        self.data, self.starts = data, starts

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, k: int) -> str:
        return self.data[self.starts[k] : self.starts[k + 1] - 1].tobytes().decode()


@dataclass(frozen=True, eq=False)
class Table:
    """What is known of the images of a data folder, a row for each.

    Args:
        root: the data folder.
        shards: tar files, relative to it; none where every image is a file of its own.
        modes: Pillow's names of the kinds of pixels.
        names: of the images relative to the root; in a shard, behind the shard's name.
        captions: of the first image, of the second, ...
        caption_starts: where those of an image begin.
        columns: those of COLUMNS.
        kept: the folder it is memory-mapped from, if it is.
    """

    root: Path
    shards: tuple[str, ...]
    modes: tuple[str, ...]
    names: Strings
    captions: Strings
    caption_starts: Int64[np.ndarray, " images_1"]
    columns: dict[str, Shaped[np.ndarray, "images ..."]]
    kept: Path | None = None

    def save(self, folder: Path) -> None:
        arrays = {
            "names": self.names.data,
            "name_starts": self.names.starts,
            "captions": self.captions.data,
            "text_starts": self.captions.starts,
            "caption_starts": self.caption_starts,
            **self.columns,
        }
        for name, values in arrays.items():
            np.save(folder / f"{name}.npy", values)
        text = json.dumps({"shards": self.shards, "modes": self.modes}, ensure_ascii=False)
        (folder / "table.json").write_text(text, encoding="utf-8")

    @classmethod
    def open(cls, folder: Path, root: Path) -> "Table":
        """Raises OSError, ValueError or EOFError if it is not there, or damaged."""
        lists = json.loads((folder / "table.json").read_text(encoding="utf-8"))
        names = ("names", "name_starts", "captions", "text_starts", "caption_starts", *COLUMNS)
        arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in names}
        return cls(
            root,
            tuple(lists["shards"]),
            tuple(lists["modes"]),
            Strings(arrays["names"], arrays["name_starts"]),
            Strings(arrays["captions"], arrays["text_starts"]),
            arrays["caption_starts"],
            {name: arrays[name] for name in COLUMNS},
            folder,
        )

    def __reduce__(self) -> tuple:
        """To another process goes the place of the files, not their content."""
        if self.kept is not None:
            return Table.open, (self.kept, self.root)
        return Table, tuple(getattr(self, field.name) for field in fields(self))

    def __len__(self) -> int:
        return len(self.names)

    def pair(self, row: int) -> Pair:
        first, end = self.caption_starts[row : row + 2].tolist()
        return Pair(self.path(row), tuple(self.captions[k] for k in range(first, end)))

    def path(self, row: int) -> Source:
        name, shard = self.names[row], int(self.columns["shard"][row])
        if shard < 0:
            return self.root / name
        tar = self.shards[shard]
        inside = name.removeprefix(f"{tar}/")
        offset, size = int(self.columns["offset"][row]), int(self.columns["size"][row])
        return Member(self.root / tar, inside, offset, size)

    @cached_property
    def pairs(self) -> "Pairs":
        return Pairs(self, np.arange(len(self)))


class Pairs(Sequence[Pair]):
    """Some rows of a table, in some order."""

    def __init__(self, table: Table, rows: Int64[np.ndarray, " pairs"]):
        self.table, self.rows = table, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, k: int | slice) -> "Pair | Pairs":
        if isinstance(k, slice):
            return Pairs(self.table, self.rows[k])
        return self.table.pair(int(self.rows[k]))

    def __iter__(self) -> Iterator[Pair]:
        return (self.table.pair(row) for row in self.rows.tolist())

    def __add__(self, other: "Pairs") -> "Pairs":
        assert self.table is other.table, "pairs of one data folder only"
        return Pairs(self.table, np.concatenate([self.rows, other.rows]))

    @property
    def paths(self) -> Sequence[Source]:
        return Paths(self)

    def column(self, name: str) -> Shaped[np.ndarray, "pairs ..."]:
        return self.table.columns[name][self.rows]

    def where(self, chosen: Shaped[np.ndarray, " pairs"]) -> "Pairs":
        return Pairs(self.table, self.rows[chosen])


class Paths(Sequence[Source]):
    """Where the images of pairs are."""

    def __init__(self, pairs: Pairs):
        self.pairs = pairs

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, k: int | slice) -> "Source | Paths":
        if isinstance(k, slice):
            return Paths(self.pairs[k])
        return self.pairs.table.path(int(self.pairs.rows[k]))


class Rows:
    """Collects the rows of a table, in little memory."""

    def __init__(self):
        self.names, self.captions = bytearray(), bytearray()
        self.name_starts, self.text_starts, self.caption_starts = (array("q", [0]) for _ in "123")
        self.modes: dict[str, int] = {}
        self.columns = {name: bytearray() for name in COLUMNS}

    def add(
        self, name: str, captions: Sequence[str], facts: dict[str, int | bytes], mode: str
    ) -> None:
        """facts: the columns that neither the name nor the captions say."""
        self.names += name.encode() + b"\n"
        self.name_starts.append(len(self.names))
        for caption in captions:
            self.captions += caption.encode() + b"\n"
            self.text_starts.append(len(self.captions))
        self.caption_starts.append(len(self.text_starts) - 1)
        derived = {
            "captions_hash": captions_hash(captions),
            "place": np.float64(place(name)).tobytes(),
            "mode": self.modes.setdefault(mode, len(self.modes)),
        }
        for column, value in (facts | derived).items():
            if isinstance(value, int):
                value = value.to_bytes(int(COLUMNS[column][0][2:]), "little", signed=True)
            self.columns[column] += value

    def table(self, root: Path, shards: Iterable[str] = ()) -> Table:
        columns = {
            name: np.frombuffer(self.columns[name], dtype).reshape(-1, *shape)
            for name, (dtype, shape) in COLUMNS.items()
        }
        return Table(
            root,
            tuple(shards),
            tuple(self.modes),
            Strings(np.frombuffer(self.names, np.uint8), integers(self.name_starts)),
            Strings(np.frombuffer(self.captions, np.uint8), integers(self.text_starts)),
            integers(self.caption_starts),
            columns,
        )


def integers(values: array) -> Int64[np.ndarray, " n"]:
    return np.frombuffer(values, np.int64)


def captions_hash(captions: Sequence[str]) -> bytes:
    return hashlib.blake2b("\0".join(captions).encode(), digest_size=16).digest()


def place(name: str) -> float:
    """A number in [0, 1) that depends on the image's relative name alone."""
    digest = hashlib.sha256(normalize("NFC", name).encode()).digest()
    return int.from_bytes(digest[:8]) / 2**64
