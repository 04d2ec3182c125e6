"""New data folders: a copy of images and captions, or files that somebody brings."""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from dataset.captions.rows import LANGUAGES, WEIGHTS
from dataset.captions.rules import CAPTION_FILES
from dataset.captions.sidecars import SIDECAR_SUFFIXES
from dataset.folder import Folder
from dataset.images.formats import EXTENSIONS
from dataset.parallel import Progress, no_progress
from dataset.table import NO_CAPTION, Pair, Table
from foundation.errors import UserError, listed, one_line, shown
from foundation.files import atomic_folder, write_text
from foundation.paths import name_problem

TAKEN = (*sorted(EXTENSIONS), *SIDECAR_SUFFIXES)  # endings of files that are taken
SPARE = 64 * 2**20  # bytes that a disk must have beyond what is written


def copy_folder(folder: Folder, target: Path, progress: Progress = no_progress) -> int:
    """Copy the usable images of a folder, with their captions in a metadata.jsonl; return how many.

    Images of tar files and tables become files.

    Raises:
        UserError: the target exists, or the disk is full.
    """
    require_new(target)
    require_room(target, int(folder.pairs.column("size").sum()))
    with atomic_folder(target) as partial:
        lines: list[str] = []
        for k, pair in enumerate(progress(folder.pairs, "copying images", len(folder.pairs))):
            name = name_of(pair, folder.root, k)
            (partial / name).parent.mkdir(parents=True, exist_ok=True)
            (partial / name).write_bytes(pair.path.read_bytes())
            row = row_of(name, pair, folder.pairs.table, k)
            lines.append(json.dumps(row, ensure_ascii=False) + "\n")
        write_text(partial / "metadata.jsonl", "".join(lines))
    return len(lines)


def name_of(pair: Pair, root: object, number: int) -> str:
    """Return the name of an image in the copy: the same if it is a file, else a number."""
    source = pair.path
    if isinstance(source, Path) and isinstance(root, Path) and source.is_relative_to(root):
        return source.relative_to(root).as_posix()
    suffix = PurePosixPath(source.suffix.lower()).name if source.suffix else ".png"
    return f"{number:06d}{suffix}"


def row_of(name: str, pair: Pair, table: Table, number: int) -> Mapping[str, Any]:
    """Return the row of metadata.jsonl for an image of a table."""
    captions = [] if pair.captions == NO_CAPTION else list(pair.captions)
    row: dict[str, Any] = {"file_name": name}
    row["text"] = captions[0] if len(captions) == 1 else captions
    first, end = table.caption_starts[number : number + 2].tolist()
    if captions and table.caption_weights is not None:
        row[WEIGHTS] = table.caption_weights[first:end].tolist()
    if captions and table.caption_languages is not None:
        numbers = table.caption_languages[first:end].tolist()
        row[LANGUAGES] = [table.languages[k] for k in numbers]
    return row


def gather_files(files: Sequence[Path], target: Path, most_bytes: int) -> int:
    """Make a data folder of images and caption files; return how many images it has.

    Raises:
        UserError: the target exists, there is no image, a file is of another kind, two have the
            same name, a name cannot be used, or they are too large together.
    """
    require_new(target)
    names: dict[str, Path] = {}
    for file in files:
        check_taken(file.name)
        if file.name.casefold() in names:
            raise UserError(f"two files are called {shown(file.name)}. Rename one of them.")
        names[file.name.casefold()] = file
    images = [file for file in files if file.suffix.lower() in EXTENSIONS]
    if not images:
        raise UserError("there is no image among the files.")
    size = sum(file.stat().st_size for file in files)
    if size > most_bytes:
        raise UserError(
            f"the files have {size / 2**20:,.0f} MiB together, and at most "
            f"{most_bytes / 2**20:,.0f} MiB are taken. Put them into a folder of the server."
        )
    require_room(target, size)
    with atomic_folder(target) as partial:
        for file in files:
            shutil.copyfile(file, partial / file.name)
    return len(images)


def check_taken(name: str) -> None:
    """Refuse a file that belongs to no data folder, or whose name cannot be used."""
    if reason := name_problem(name):
        raise UserError(f"{shown(name)} cannot be taken: its name {reason}. Rename it.")
    if name.startswith("."):
        raise UserError(f"{shown(name)} cannot be taken: it is a hidden file.")
    if name not in CAPTION_FILES and not name.lower().endswith(TAKEN):
        raise UserError(
            f"{shown(name)} is neither an image nor a file of captions. Images end in "
            f"{listed(sorted(EXTENSIONS), 30)}; captions are in {' or '.join(SIDECAR_SUFFIXES)} "
            f"files of the same names, or in {' or '.join(CAPTION_FILES)}."
        )


def require_new(target: Path) -> None:
    """Raise a UserError if there is such a folder or file."""
    if target.exists() or target.is_symlink():
        raise UserError(f"{one_line(target)} is there already. Choose another name.")


def require_room(target: Path, size: int) -> None:
    """Raise a UserError if the disk has not so many bytes free."""
    folder = target.absolute().parent
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < size + SPARE:
        raise UserError(
            f"{size / 2**20:,.0f} MiB are to be written to {one_line(target)}, and only "
            f"{free / 2**20:,.0f} MiB are free there."
        )
