"""Corrections of captions, written back to where they stand: a table, or files beside the images.

Rows, fields and files that are not concerned keep what they hold. A file is written aside and
renamed, so that a reader sees the old one or the new one.
"""

import csv
import io
import json
import threading
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from dataset.captions.files import FileList
from dataset.captions.rows import (
    IMAGE_FIELDS,
    LANGUAGES,
    TEXT_FIELDS,
    WEIGHTS,
    check_caption,
    first_field,
    text_of,
)
from dataset.captions.rules import METADATA, find_captions
from dataset.captions.sidecars import match_sidecars, stem
from dataset.captions.text_tables import csv_table, json_lines
from dataset.folder import list_files
from foundation.errors import UserError, one_line, shown
from foundation.files import write_text

SIDECARS = ".txt files"
Captions = tuple[str, ...]
Changes = Mapping[str, Captions]  # image, relative to the folder, with slashes -> its captions
WRITING = threading.Lock()  # threads of a page that correct captions at the same time


def editable_source(root: Path) -> str:
    """Return where the captions of a folder stand: "metadata.jsonl", "metadata.csv" or SIDECARS.

    "" stands for captions that come from elsewhere, and for none: these can be copied
    (dataset/editing/new_folder.py).
    """
    files, _ = list_files(root)
    return source_of(files)


def source_of(files: FileList) -> str:
    tables = [name for name in METADATA if files.find(name)]
    if tables:
        return tables[0]
    return SIDECARS if match_sidecars(files).files else ""


def write_captions(root: Path, before: Changes, after: Changes) -> None:
    """Correct the captions of images.

    Args:
        before: what was shown to whoever corrects them.
        after: the same images with what is to be written.

    Raises:
        UserError: the captions do not stand in a table or in files beside the images, somebody has
            changed them meanwhile, they cannot be written as they are, or a file to write lies
            outside of the folder. Nothing is written then.
    """
    for captions in after.values():
        check_captions(captions)
    with WRITING:
        files, _ = list_files(root)
        source = source_of(files)
        if not source:
            raise UserError(
                f"the captions of {one_line(root)} are neither in a metadata.jsonl or metadata.csv "
                "nor in .txt files. Copy the folder first; the copy has a metadata.jsonl."
            )
        before, after = with_composed_names(files, before), with_composed_names(files, after)
        require_unchanged(files, before)
        written = sidecar_texts(files, after)
        if source != SIDECARS:
            tables = [read_table(folder, path) for folder, path in files.find(source)]
            written = table_texts(files, tables, after)
        inside = root.resolve()
        for path in written:
            if not path.resolve().is_relative_to(inside):
                raise UserError(f"{one_line(path)} is a link that leads out of the folder.")
        for path, text in written.items():
            write_text(path, text)


def with_composed_names(files: FileList, changes: Changes) -> Changes:
    """Return changes whose images have the names of `FileList`, not those on the disk."""
    names = {on_disk: name for name, on_disk in files.images.items()}
    return {names.get(image, image): captions for image, captions in changes.items()}


def check_captions(captions: Captions) -> None:
    """Refuse what a file of captions cannot hold."""
    for caption in captions:
        try:
            check_caption(caption)
            caption.encode()
        except UnicodeEncodeError:
            raise UserError(f"a caption holds half of a character: {shown(caption)}.") from None
        except UserError as error:
            raise UserError(f"a caption {error}.") from None
        if len(caption.splitlines()) > 1:
            raise UserError(f"a caption has several lines: {shown(caption)}.")


def require_unchanged(files: FileList, before: Changes) -> None:
    """Raise a UserError if images are gone, or have other captions than these."""
    now = find_captions(files).captions
    for image, captions in before.items():
        if image not in files.images:
            raise UserError(f"the image {shown(image)} is no longer there. Read the folder again.")
        found = dict.fromkeys(text for caption in now.get(image, ()) if (text := text_of(caption)))
        if tuple(found) != tuple(caption for caption in captions if caption):
            raise UserError(
                f"somebody has changed the captions of {shown(image)} meanwhile. Read the folder "
                "again, and correct what is there now."
            )


# Files beside the images --------------------------------------------------------------------------


def sidecar_texts(files: FileList, after: Changes) -> dict[Path, str]:
    """Return the files to write, and what they will hold: a caption in each line."""
    found = match_sidecars(files).files
    users = defaultdict[str, set[str]](set)
    for image, name in found.items():
        users[name].add(image)
    stems = defaultdict[str, set[str]](set)
    for image in files.images:
        stems[stem(image)].add(image)
    written: dict[Path, str] = {}
    for image, captions in after.items():
        name = found.get(image)
        if name is not None and len(users[name]) == 1:
            path = files.root / files.others[name]
        else:  # a.png and a.jpg share a.txt, or would: then a.png.txt is that of a.png alone
            on_disk = files.images[image]
            shared = len(stems[stem(image)]) > 1
            path = files.root / (f"{on_disk}.txt" if shared else f"{stem(on_disk)}.txt")
        written[path] = "".join(f"{caption}\n" for caption in captions)
    return written


# Tables -------------------------------------------------------------------------------------------


@dataclass
class CaptionTable:
    """The rows of a table, as they are and as they will be.

    Args:
        folder: of the table, relative to the data folder.
        columns: of a CSV file.
        rows: field -> value of each.
    """

    folder: PurePosixPath
    path: Path
    columns: list[str] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)

    @property
    def is_csv(self) -> bool:
        return self.path.suffix == ".csv"

    def text(self) -> str:
        """Return the whole table as its file holds it."""
        if not self.is_csv:
            return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in self.rows)
        stream = io.StringIO(newline="")
        writer = csv.DictWriter(stream, self.columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        return stream.getvalue()


def read_table(folder: PurePosixPath, path: Path) -> CaptionTable:
    """Read a metadata.jsonl or a metadata.csv with all its fields."""
    if path.suffix == ".csv":
        columns, rows = csv_table(path, ",")
        return CaptionTable(folder, path, columns, [dict(cells) for _, cells in rows])
    return CaptionTable(folder, path, [], [row for _, row in json_lines(path)])


def table_texts(files: FileList, tables: Sequence[CaptionTable], after: Changes) -> dict[Path, str]:
    """Return the tables that change, and what they will hold."""
    changed: dict[Path, CaptionTable] = {}
    left = dict(after)
    for table in tables:
        rows: list[dict[str, Any]] = []
        for row in table.rows:
            image = image_of(row, files, table.folder)
            if image is None or image not in after:
                rows.append(row)
                continue
            # The first row of an image gets all captions; others are not needed any more.
            rows += with_captions(row, left.pop(image), table.is_csv) if image in left else []
            changed[table.path] = table
        table.rows = rows
    for image, captions in left.items():
        table = nearest_table(tables, image)
        place = PurePosixPath(image).relative_to(table.folder).as_posix()
        row: dict[str, Any] = dict.fromkeys(table.columns, "") if table.is_csv else {}
        image_field = first_field(row, IMAGE_FIELDS) or IMAGE_FIELDS[0]
        text_field = first_field(row, TEXT_FIELDS) or TEXT_FIELDS[0]
        table.rows += with_captions(
            {**row, image_field: place, text_field: ""}, captions, table.is_csv
        )
        changed[table.path] = table
    return {path: table.text() for path, table in changed.items()}


def image_of(row: Mapping[str, Any], files: FileList, folder: PurePosixPath) -> str | None:
    """Return the name of the image of a row, relative to the data folder; None if there is none."""
    written = str(row[field_of(row, IMAGE_FIELDS)])
    return files.find_image(written, folder) or files.find_without_case(written, folder)


def field_of(row: Mapping[str, Any], names: tuple[str, ...]) -> str:
    """Return which of these fields a row has, or the usual one."""
    return first_field(row, names) or names[0]


def nearest_table(tables: Sequence[CaptionTable], image: str) -> CaptionTable:
    """Return the table in the folder of an image, or in the nearest one above it.

    Raises:
        UserError: all tables lie in other folders.
    """
    above = [table for table in tables if table.folder in PurePosixPath(image).parents]
    if not above:
        raise UserError(f"no table lies above {shown(image)}. Write its caption by hand.")
    return max(above, key=lambda table: len(table.folder.parts))


def with_captions(row: dict[str, Any], captions: Captions, is_csv: bool) -> list[dict[str, Any]]:
    """Return a row with other captions; in a CSV file each further caption has a row of its own.

    Raises:
        UserError: the row has a list with a weight or a language for each of the captions before.
    """
    name = field_of(row, TEXT_FIELDS)
    if is_csv:
        return [{**row, name: caption} for caption in captions or ("",)]
    for marks in (WEIGHTS, LANGUAGES):
        if isinstance(row.get(marks), list) and len(row[marks]) != len(captions):
            raise UserError(
                f"{shown(row[field_of(row, IMAGE_FIELDS)])} has {marks} for "
                f"{len(row[marks])} captions, and {len(captions)} are to be written. Keep their "
                "number, or change the file by hand."
            )
    if len(captions) == 1 and not isinstance(row[name], list):
        return [{**row, name: captions[0]}]
    return [{**row, name: list(captions) if captions else ""}]
