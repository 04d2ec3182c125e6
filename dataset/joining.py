"""Joins the tables of parts to one table, and writes it piece by piece: memory for one part."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
from jaxtyping import Shaped

from dataset.table import ARRAYS, CAPTION_MARKS, Root, Table, TableBuilder, TableLists

OpenTable = Callable[[], Table]  # opened only while it is needed
STARTS = {"name_starts": "names", "text_starts": "captions", "caption_starts": "text_starts"}


class JoinedTables:
    """The rows of several tables of a data folder, one after the other.

    Shards, kinds of pixels and languages are numbered in the order of their first occurrence, as if
    all rows had been added to one table.
    """

    def __init__(self, tables: Sequence[OpenTable]):
        self.tables = tables
        self.shards: dict[str, int] = {}
        self.modes: dict[str, int] = {}
        self.languages: dict[str, int] = {"": 0}
        marks: set[str] = set()
        self.rows, self.is_trusted, self.image_column = 0, False, ""
        for open_table in tables:
            table = open_table()
            for names, known in (
                (table.shards, self.shards),
                (table.modes, self.modes),
                (table.languages, self.languages),
            ):
                for name in names:
                    known.setdefault(name, len(known))
            marks |= table.marks().keys()
            self.rows += len(table)
            self.is_trusted |= table.is_trusted
            self.image_column = table.image_column
        self.marks = [name for name in CAPTION_MARKS if name in marks]

    def pieces(self, name: str) -> Iterator[Shaped[np.ndarray, "rows ..."]]:
        """Yield one of the arrays, table by table, with the numbers that hold for all of them."""
        total = 0
        for k, open_table in enumerate(self.tables):
            table = open_table()
            if name in CAPTION_MARKS:
                yield self.marks_of(table, name)
                continue
            values = table.arrays()[name]
            if name in STARTS:
                yield values[1 if k else 0 :] + total
                total += int(values[-1])
            elif name in ("shard", "mode"):
                known = self.shards if name == "shard" else self.modes
                names = table.shards if name == "shard" else table.modes
                numbers = np.array([*(known[each] for each in names), -1], np.int32)
                yield numbers[values]  # -1, no shard, is the last one
            else:
                yield values

    def marks_of(self, table: Table, name: str) -> Shaped[np.ndarray, " captions"]:
        """Return the weights or languages of one of the tables, which may have none."""
        values = table.marks().get(name)
        if name == "caption_weights":
            return np.ones(len(table.captions)) if values is None else values
        if values is None:
            return np.zeros(len(table.captions), np.uint16)
        return np.array([self.languages[each] for each in table.languages], np.uint16)[values]

    def save(self, folder: Path) -> None:
        """Write what `Table.save` of the joined table would write, to the byte."""
        for name in (*ARRAYS, *self.marks):
            with (folder / f"{name}.npy").open("wb") as file:
                write_array(file, lambda name=name: self.pieces(name))
        self.lists().write(folder)

    def lists(self) -> TableLists:
        """Return what table.json holds."""
        return TableLists(
            tuple(self.shards),
            tuple(self.modes),
            self.image_column,
            self.is_trusted,
            tuple(self.marks),
            tuple(self.languages),
        )

    def in_memory(self) -> Table:
        """Return the joined table; it takes memory for all rows."""
        if not self.tables:
            raise ValueError("no tables to join")
        names = (*ARRAYS, *self.marks)
        copies: dict[str, list[Shaped[np.ndarray, "rows ..."]]] = {name: [] for name in names}
        # All arrays of a table before those of the next one, so that each is opened once.
        for pieces in zip(*map(self.pieces, names), strict=True):
            for name, piece in zip(names, pieces, strict=True):
                copies[name].append(np.array(piece))
        arrays = {name: np.concatenate(parts) for name, parts in copies.items()}
        return Table.from_arrays(self.tables[0]().root, self.lists(), arrays)


def write_array(
    file: BinaryIO, pieces: Callable[[], Iterator[Shaped[np.ndarray, "rows ..."]]]
) -> None:
    """Write pieces of an array as np.save writes the whole.

    Plain writes, because on a full disk they fail with an error; a memory map would end the
    process.
    """
    shapes = [(len(piece), piece.shape[1:], piece.dtype) for piece in pieces()]
    header = {
        "descr": np.lib.format.dtype_to_descr(shapes[0][2]),
        "fortran_order": False,
        "shape": (sum(length for length, _, _ in shapes), *shapes[0][1]),
    }
    np.lib.format.write_array_header_1_0(file, header)
    for piece in pieces():
        file.write(np.ascontiguousarray(piece).data)


def empty_table(root: Root) -> Table:
    """Return a table without rows."""
    return TableBuilder().build(root)
