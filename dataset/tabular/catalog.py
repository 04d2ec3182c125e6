"""The rows of tables as a catalog: images that lie in the tables, or files that these name."""

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from unicodedata import normalize

from dataset.captions.rows import LANGUAGES, WEIGHTS, Caption, caption_list, unique_captions
from dataset.index import Catalog
from dataset.parallel import Progress
from dataset.source import Cell, Source, UnusableFile
from dataset.stores.remote import RemoteFile
from dataset.table import NO_CAPTION, Root
from dataset.tabular.arrow_files import TableRow, open_columnar
from dataset.tabular.columns import Column
from dataset.tabular.text_rows import TextTable
from foundation.errors import UserError, shown

LARGE_GROUP = 128 * 2**20  # bytes; beyond it a row group is read from its beginning for each image


@dataclass(frozen=True)
class Choice:
    """The columns that are read.

    Args:
        image: the column of images.
        caption: the column of captions; None if there is none.
        columns: all that there are.
    """

    image: Column
    caption: Column | None
    columns: Sequence[Column]

    def rule(self, table: str) -> str:
        """Say where the captions come from."""
        if self.caption is None:
            names = ", ".join(column.name for column in self.columns)
            return (
                f"no column of {table}: none has a usual name among {names}; name one: "
                "caption_column"
            )
        return f"the column {self.caption.name!r} of {table}"


class PathRow(NamedTuple):
    """A row that names an image file."""

    table: Path
    location: str
    image: Any
    caption: Any
    weights: Any = None
    languages: Any = None


@dataclass
class Content:
    """What has been read from tables so far. Every row is counted exactly once.

    Args:
        places: image name -> (number of its table, `Cell.position`); (-1, 0) for a file.
    """

    places: dict[str, tuple[int, int]] = field(default_factory=dict)
    captions: dict[str, tuple[Caption, ...]] = field(default_factory=dict)
    unusable: list[UnusableFile] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    by_folded_name: dict[str, str] = field(default_factory=dict)  # of files; without capitals

    def add(self, name: str, place: tuple[int, int], captions: list[Caption]) -> None:
        """Add an image, or captions to the image of this name."""
        if name in self.places:
            self.counts["row with more captions of an image"] += 1
            captions = [*self.captions[name], *captions]
        self.places[name] = place
        self.captions[name] = unique_captions(captions) or NO_CAPTION

    def file_problem(self, root: Path, name: str) -> str:
        """Return why a file that a row names cannot be used; "" if it can.

        Where a disk does not distinguish capitals, and a table names both a.png and A.PNG, the
        second has replaced the first.
        """
        if name in self.places:
            return ""
        if not (root / name).is_file():
            return "there is no such image"
        other = self.by_folded_name.setdefault(name.casefold(), name)
        if other != name and os.path.samefile(root / name, root / other):
            return f"this is the file {shown(other)}, which another row names, too"
        return ""

    def leave_out(self, path: Source, reason: str) -> None:
        """Count a row that cannot be used, and say why."""
        self.counts["row that cannot be used"] += 1
        self.unusable.append(UnusableFile(path, reason))

    def uses(self) -> dict[str, int]:
        """Return how many rows there are of each kind."""
        return {"image": len(self.places), **self.counts}


# Images in tables ---------------------------------------------------------------------------------


def embedded_catalog(
    root: Root, tables: Sequence[str], choice: Choice, progress: Progress
) -> Catalog:
    """Read all rows of tables that hold the images themselves.

    An image has the name that its row gives it; without one, or if an earlier row has the same, it
    is called after the table and the row.
    """
    content = Content()
    for number, table in enumerate(progress(tables, "reading tables", len(tables))):
        for row in open_columnar(root / table).rows(choice.image, choice.caption):
            add_row(content, root, number, table, row, choice)
    times = {table: (root / table).stat().st_mtime_ns for table in tables}

    def locate(name: str) -> Source:
        number, position = content.places[name]
        if number < 0:
            return root / name
        return Cell.at(root / tables[number], position, choice.image.name, name)

    return Catalog(
        root,
        choice.rule(name_tables(tables)),
        content.captions,
        locate,
        content.unusable,
        large_groups(root, tables, choice.image.name),
        times,
        content.uses(),
        image_column=choice.image.name,
        by_name=True,
    )


def add_row(
    content: Content, root: Root, number: int, table: str, row: TableRow, choice: Choice
) -> None:
    """Add a row of a table that holds images, or say why it cannot be used."""
    cell = Cell(root / table, row.group, row.row, choice.image.name)
    given = normalize("NFC", row.path) if isinstance(row.path, str) else ""
    try:
        captions = read_captions(row, choice.caption)
    except UserError as error:
        return content.leave_out(cell, f"its caption {error}")
    if row.is_embedded:
        name = given if given and given not in content.places else f"{table}/{row.row:09d}"
        return content.add(name, (number, cell.position), captions)
    if not given:
        return content.leave_out(cell, f"has no image: {choice.image.name!r} is empty")
    if isinstance(root, RemoteFile):
        return content.leave_out(cell, f"names {shown(given)}, but of stores no files are read")
    name = file_name(root, (root / table).parent, given)
    if reason := content.file_problem(root, name):
        return content.leave_out(cell, f"names {shown(given)}, but {reason}")
    content.add(name, (-1, 0), captions)


def large_groups(root: Root, tables: Sequence[str], column: str) -> list[str]:
    """Write a note if row groups are so large that reading images at random is slow."""
    sizes = [
        (file.group_bytes(group, column), file.path)
        for file in (open_columnar(root / table) for table in tables)
        for group in file.groups
    ]
    large = [entry for entry in sizes if entry[0] > LARGE_GROUP]
    if not large:
        return []
    size, path = max(large)
    return [
        f"{len(large)} of {len(sizes)} row groups are larger than {LARGE_GROUP >> 20} MiB, the "
        f"largest, in {path}, has {size >> 20}. For one image all that lies before it in its row "
        "group is read, which is slow. Write the tables again with row groups of 100 rows: "
        "row_group_size=100 of pyarrow.parquet.write_table."
    ]


# Files that tables name ---------------------------------------------------------------------------


def path_catalog(base: Path, rows: Iterable[PathRow], choice: Choice, tables: str) -> Catalog:
    """Read all rows of tables that name image files.

    base: the folder that the names are relative to.
    """
    content = Content()
    for row in rows:
        if not isinstance(row.image, str) or not row.image.strip():
            content.leave_out(row.table, f"{row.location}: names no image: {shown(row.image)}")
            continue
        try:
            captions = read_captions(row, choice.caption)
        except UserError as error:
            content.leave_out(row.table, f"{row.location}: its caption {error}")
            continue
        name = file_name(base, base, row.image)
        if reason := content.file_problem(base, name):
            reason = f"is named in {row.location} of {row.table.name}, but {reason}"
            content.leave_out(base / name, reason)
            continue
        content.add(name, (-1, 0), captions)
    return Catalog(
        base,
        choice.rule(tables),
        content.captions,
        base.joinpath,
        content.unusable,
        [],
        {},
        content.uses(),
        by_name=True,
    )


def text_path_rows(table: TextTable, choice: Choice) -> Iterator[PathRow]:
    """Yield the rows of a table of text."""
    for location, content in table.rows():
        caption = content.get(choice.caption.name) if choice.caption else None
        marks = (content.get(name) for name in (WEIGHTS, LANGUAGES))
        yield PathRow(table.path, location, content.get(choice.image.name), caption, *marks)


def columnar_path_rows(path: Path, choice: Choice) -> Iterator[PathRow]:
    """Yield the rows of a parquet or Arrow file that names image files."""
    for row in open_columnar(path).rows(choice.image, choice.caption):
        location = f"row group {row.group}, row {row.row}"
        yield PathRow(path, location, row.path, row.caption, row.weights, row.languages)


def file_name(root: Path, folder: Path, written: str) -> str:
    """Return the name of an image relative to the root, as far as it lies below it.

    Args:
        folder: that the written name is relative to.
        written: in a table; backslashes, as Windows writes them, are understood.
    """
    for text in dict.fromkeys((written, written.replace("\\", "/"))):
        path = os.path.normpath(folder / text)
        for start in dict.fromkeys((os.path.abspath(root), os.path.realpath(root))):
            if os.path.isabs(text) and path.startswith(start + os.sep):
                return Path(os.path.relpath(path, start)).as_posix()
        if os.path.isfile(path):
            break
    else:
        path = os.path.normpath(folder / written)
    if os.path.isabs(written):
        return Path(path).as_posix()
    return Path(os.path.relpath(path, root)).as_posix()


# Captions -----------------------------------------------------------------------------------------


def read_captions(row: PathRow | TableRow, column: Column | None) -> list[Caption]:
    """Return the captions of a row.

    Raises:
        UserError: it is no caption. The message continues "its caption ...".
    """
    value = row.caption
    if column is not None and column.kind == "classes":
        if value is None or value == -1:  # -1: the class is not known, as in test sets
            return []
        if not 0 <= value < len(column.classes):
            raise UserError(f"is class {value}, and there are {len(column.classes)}")
        return [column.classes[value].replace("_", " ")]
    if isinstance(value, bytes):
        raise UserError("is not UTF-8 text")
    return caption_list(value, row.weights, row.languages)


def name_tables(tables: Sequence[str]) -> str:
    """Name one table, or say how many there are."""
    return tables[0] if len(tables) == 1 else f"{len(tables)} tables"
