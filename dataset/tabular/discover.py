"""Which tables a data set has, which of them are read, and how they are indexed."""

import glob
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from dataset.images.formats import EXTENSIONS
from dataset.index import Catalog
from dataset.options import ReadOptions
from dataset.parallel import Progress
from dataset.source import as_lines
from dataset.splits import choose_split, split_of
from dataset.stores.listing import expand_remote
from dataset.stores.remote import RemoteFile, is_remote, parse_url
from dataset.table import Root
from dataset.tabular.arrow_files import ARROW_SUFFIXES, PARQUET_SUFFIXES, open_columnar
from dataset.tabular.catalog import (
    Choice,
    PathRow,
    columnar_path_rows,
    embedded_catalog,
    name_tables,
    path_catalog,
    text_path_rows,
)
from dataset.tabular.columns import choose_columns
from dataset.tabular.footer import Leaf
from dataset.tabular.image_folders import find_base
from dataset.tabular.text_rows import TEXT_SUFFIXES, open_text
from dataset.webdataset import expand_braces, shards_fingerprint
from foundation.errors import MissingFileError, UserError, listed, one_line, unknown_name
from foundation.files import read_text
from foundation.json_reading import load_object
from foundation.paths import common_folder

COLUMNAR_SUFFIXES = PARQUET_SUFFIXES | ARROW_SUFFIXES
TABLE_SUFFIXES = COLUMNAR_SUFFIXES | TEXT_SUFFIXES
SAVED, SAVED_SPLITS = "state.json", "dataset_dict.json"  # of `save_to_disk`
RULES = "2"  # of reading tables that name files: another number makes older indexes invalid
FOLDER_TABLE = "metadata.parquet"  # next to images, as Hugging Face's imagefolder has it


class IndexPlan(NamedTuple):
    """What `open_index` needs to know."""

    root: Root
    kind: str
    fingerprint: str
    read: Callable[[], Catalog]


@dataclass(frozen=True)
class TableSet:
    """The tables to read, sorted by name, and the split that was chosen by their names."""

    files: Sequence[Root]  # all local, or all in a store
    split: str | None = None
    root: RemoteFile | None = None  # of files in a store

    @property
    def local(self) -> list[Path]:
        """The tables that are files on this machine."""
        return [file for file in self.files if isinstance(file, Path)]


def plan_tables(data: Path | str, options: ReadOptions, progress: Progress) -> IndexPlan | None:
    """Return how the tables of a data set are indexed; None if it has none.

    Raises:
        UserError: the tables, or what is asked of them, cannot be read or are not clear.
    """
    tables = find_tables(data, options.split)
    if tables is None:
        return None
    first = tables.files[0]
    if isinstance(first, Path) and first.suffix.lower() in TEXT_SUFFIXES:
        return plan_text(tables, options)
    columns = open_columnar(first).columns
    image, caption = choose_columns(columns, options, first)
    choice = Choice(image, caption, columns)
    for file in tables.files[1:]:
        require_same_columns(first, file, choice)
    if isinstance(first, RemoteFile) and holds_only_names(tables.files, choice):
        raise UserError(
            f"the column {image.name!r} of {one_line(first)} names files, and of stores only "
            "tables are read that hold the images themselves. Copy the table and its images to "
            "this machine, or write the images into the table or into shards."
        )
    if image.kind == "text":
        rows = (row for file in tables.local for row in columnar_path_rows(file, choice))
        return plan_paths(tables, rows, choice)
    return plan_embedded(tables, choice, progress)


# Finding ------------------------------------------------------------------------------------------


def find_tables(data: Path | str, split: str | None) -> TableSet | None:
    """Return the tables that a path, a pattern or a folder names; None if it names none."""
    if is_remote(data):
        return remote_tables(parse_url(data), split)
    path, text = Path(data), str(data)
    if path.is_dir():
        return tables_of_folder(path, split)
    if path.suffix.lower() not in TABLE_SUFFIXES:
        return None
    files = [
        Path(name) for each in expand_braces(text) for name in sorted(glob.glob(each)) or [each]
    ]
    if missing := [file for file in files if not file.exists()]:
        raise MissingFileError(
            f"{len(missing)} of the {len(files)} tables of {one_line(text)} are missing (absolute "
            f"path of the first one: {missing[0].absolute()}):\n{as_lines(missing)}"
        )
    if path.suffix.lower() == ".json" and len(files) == 1:
        return TableSet(files)  # its images may have splits
    return only_split(path, sorted(set(files)), split, required=False)


def remote_tables(text: str, split: str | None) -> TableSet:
    """Return the parquet files in a store that a pattern names."""
    if split is not None:
        raise UserError(f"{one_line(text)} is in a store, where no splits are known: leave it out.")
    root, names = expand_remote(text, list(expand_braces(text)))
    if others := [name for name in names if not name.lower().endswith(tuple(PARQUET_SUFFIXES))]:
        raise UserError(
            f"{one_line(root / others[0])} is neither a shard (.tar) nor a parquet file, and of "
            "stores nothing else is read. Copy it to this machine."
        )
    return TableSet([root / name for name in names], root=root)


def tables_of_folder(folder: Path, split: str | None) -> TableSet | None:
    """Return the tables of a folder that has no images, or that says that it is a table."""
    if (folder / SAVED_SPLITS).is_file():
        content = load_object(read_text(folder / SAVED_SPLITS), folder / SAVED_SPLITS)
        names = [str(name) for name in content.get("splits", ()) if is_plain(name)]
        chosen = choose_split(names, split, folder, listed(names)) or (names[0] if names else "")
        return TableSet(saved_files(folder / chosen), chosen)
    if (folder / SAVED).is_file():
        return only_split(folder, saved_files(folder), split)
    if (folder / FOLDER_TABLE).is_file():
        return only_split(folder, [folder / FOLDER_TABLE], split)
    if annotations := sorted((folder / "annotations").glob("captions_*.json")):
        return only_split(folder, annotations, split)
    files: list[Path] = []
    for path in visible_files(folder):
        suffix = path.suffix.lower()
        if suffix in EXTENSIONS or suffix == ".tar":
            return None
        if suffix in COLUMNAR_SUFFIXES:
            files.append(path)
    return only_split(folder, sorted(files), split) if files else None


def is_plain(name: Any) -> bool:
    """Return whether this is the name of a folder, and not a path that leads elsewhere."""
    return isinstance(name, str) and PurePosixPath(name).name == name != ".."


def saved_files(folder: Path) -> list[Path]:
    """Return the Arrow files of a data set that was written by `save_to_disk`, in their order."""
    if not (folder / SAVED).is_file():
        raise MissingFileError(f"there is no {folder / SAVED}. Copy the whole folder again.")
    content = load_object(read_text(folder / SAVED), folder / SAVED)
    entries = content.get("_data_files")
    names = [
        entry["filename"]
        for entry in (entries if isinstance(entries, list) else [])
        if isinstance(entry, dict) and is_plain(entry.get("filename"))
    ]
    files = [folder / name for name in names] or sorted(folder.glob("*.arrow"))
    if missing := [file for file in files if not file.is_file()]:
        raise MissingFileError(f"{len(missing)} files that {SAVED} names:\n{as_lines(missing)}")
    if not files:
        raise UserError(f"{one_line(folder)} has a {SAVED}, but no Arrow file.")
    return files


def visible_files(folder: Path) -> Iterator[Path]:
    """Yield the files below a folder without hidden ones; it stops early if the caller does."""
    for path, folders, files in os.walk(folder, followlinks=False):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(path) / name for name in sorted(files) if not name.startswith("."))


def only_split(data: Path, files: list[Path], split: str | None, required: bool = True) -> TableSet:
    """Return the tables of one split, by their names or by those of their folders.

    required: whether files of several splits need a choice. A pattern has chosen already.
    """
    splits = {file: table_split(file, data) for file in files}
    found = sorted({name for name in splits.values() if name})
    if split is None and not required:
        return TableSet(files)
    chosen = choose_split(found, split, data, listed(found))
    if chosen is None:
        return TableSet(files)
    return TableSet([file for file in files if splits[file] == chosen], chosen)


def table_split(file: Path, data: Path) -> str | None:
    """Return the split that the name of a table means, or that of a folder around it."""
    stem = file.stem.removeprefix("captions_")
    folders = file.relative_to(data).parts[:-1] if file.is_relative_to(data) else ()
    return next((split for part in (stem, *reversed(folders)) if (split := split_of(part))), None)


def require_same_columns(first: Root, other: Root, choice: Choice) -> None:
    """Refuse tables that have not the columns of the first one."""
    kinds = {column.name: column.kind for column in open_columnar(other).columns}
    for column in (choice.image, choice.caption):
        if column is not None and column.name not in kinds:
            error = unknown_name(column.name, list(kinds), "column")
            raise UserError(f"{one_line(other)} lacks a column of {one_line(first)}: {error}")
        if column is not None and kinds[column.name] != column.kind:
            raise UserError(
                f"the column {column.name!r} is of another type in {one_line(other)} than in "
                f"{one_line(first)}. Give only tables that belong together."
            )


# Planning -----------------------------------------------------------------------------------------


def plan_embedded(tables: TableSet, choice: Choice, progress: Progress) -> IndexPlan:
    """Plan the index of tables that hold the images."""
    root, names = common_root(tables)
    fingerprint = shards_fingerprint(root, names)
    if isinstance(root, RemoteFile) or not names_files(tables.files, choice):

        def read() -> Catalog:
            return embedded_catalog(root, names, choice, progress)

        return IndexPlan(root, kind_of_index(tables, choice), fingerprint, read)
    catalog = embedded_catalog(root, names, choice, progress)
    files = (name for name in catalog.captions if isinstance(catalog.locate(name), Path))
    fingerprint = hashed(fingerprint, *map(file_stamp, map(catalog.locate, files)))
    return IndexPlan(root, kind_of_index(tables, choice), fingerprint, lambda: catalog)


def common_root(tables: TableSet) -> tuple[Root, list[str]]:
    """Return the folder of all tables, and their names relative to it."""
    if tables.root is not None:
        return tables.root, [str(file).removeprefix(f"{tables.root}/") for file in tables.files]
    root = common_folder([file.parent for file in tables.local])
    return root, [file.relative_to(root).as_posix() for file in tables.local]


def names_files(files: Sequence[Root], choice: Choice) -> bool:
    """Return whether rows without an image's bytes may name a file instead."""
    if choice.image.kind != "image":
        return False
    leaf = Leaf(choice.image.name, "bytes")
    opened = map(open_columnar, files)
    return any(file.nulls(group, leaf) for file in opened for group in file.groups)


def holds_only_names(files: Sequence[Root], choice: Choice) -> bool:
    """Return whether no row has the bytes of its image."""
    if choice.image.kind != "image":
        return choice.image.kind == "text"
    leaf = Leaf(choice.image.name, "bytes")
    opened = map(open_columnar, files)
    empty = (f.nulls(k, leaf) == f.group_length(k) for f in opened for k in f.groups)
    return all(empty) and any(len(open_columnar(file)) for file in files)


def plan_text(tables: TableSet, options: ReadOptions) -> IndexPlan:
    """Plan the index of the images that tables of text name."""
    opened = [open_text(file, options.split) for file in tables.local]
    choices: list[Choice] = []
    for table in opened:
        image, caption = choose_columns(table.columns, options, table.path)
        choices.append(Choice(image, caption, table.columns))
    pairs = list(zip(opened, choices, strict=True))
    rows = (row for table, choice in pairs for row in text_path_rows(table, choice))
    return plan_paths(tables, rows, choices[0], options.split)


def plan_paths(
    tables: TableSet, rows: Iterator[PathRow], choice: Choice, split: str | None = None
) -> IndexPlan:
    """Plan the index of image files. The tables are read at every start, to know which files."""
    base, rows = find_base(rows, tables.local[0])
    shown = name_tables([file.name for file in tables.files])
    catalog = path_catalog(base, rows, choice, f"{shown}; images in {one_line(base)}")
    stamps = (file_stamp(base / name) for name in catalog.captions)
    fingerprint = hashed(RULES, *map(file_stamp, tables.files), *stamps)
    kind = kind_of_index(tables, choice, split)
    return IndexPlan(base, kind, fingerprint, lambda: catalog)


def kind_of_index(tables: TableSet, choice: Choice, split: str | None = None) -> str:
    """Return the name of an index: other tables or columns have one of their own next to it."""
    columns = [column and column.name for column in (choice.image, choice.caption)]
    root, names = common_root(tables)
    first = tables.files[0]
    if isinstance(first, Path):
        names = [os.path.relpath(file, first.parent) for file in tables.files]
        names[0] = str(first.absolute())
    else:
        names[0] = str(root / names[0])
    return f"table-{hashed(*map(str, (*columns, tables.split, split, *names)))[:16]}"


def hashed(*texts: str) -> str:
    """Hash texts, in their order."""
    digest = hashlib.blake2b(digest_size=16)
    for text in texts:
        digest.update(text.encode(errors="surrogateescape") + b"\n")
    return digest.hexdigest()


def file_stamp(path: Any) -> str:
    """Write name, size and time of a file."""
    stat = path.stat()
    return f"{path.name}\0{stat.st_size}\0{stat.st_mtime_ns}"
