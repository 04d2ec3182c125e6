"""New data folders: a copy of images and captions, or files that somebody brings."""

import json
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote

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
LONGEST_NAME = 200  # characters of a file's name, its folders included
MOST_LEVELS = 8  # folders in each other, and the file
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


def gather_files(files: Sequence[tuple[str, Path]], target: Path, most_bytes: int) -> int:
    """Make a data folder of images and caption files; return how many images it has.

    files: the name of each in the new folder, which may have folders in it ("red/1.png"), and where
        it lies now.

    Raises:
        UserError: the target exists, there is no image, a file is of another kind, two have the
            same name, a name cannot be used or leads out of the folder, or they are too large
            together.
    """
    require_new(target)
    for name, _ in files:
        check_taken(name)
    check_different([name for name, _ in files])
    images = [name for name, _ in files if PurePosixPath(name).suffix.lower() in EXTENSIONS]
    if not images:
        raise UserError("there is no image among the files.")
    size = sum(file.stat().st_size for _, file in files)
    if size > most_bytes:
        raise UserError(
            f"the files have {size / 2**20:,.0f} MiB together, and at most "
            f"{most_bytes / 2**20:,.0f} MiB are taken. Put them into a folder of the server."
        )
    require_room(target, size)
    with atomic_folder(target) as partial:
        for name, file in files:
            (partial / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, partial / name)
    return len(images)


def check_taken(path: str) -> None:
    """Refuse a file that belongs to no data folder, or whose name cannot be used.

    path: relative to the new folder, with slashes.
    """
    parts = path.split("/")
    name = parts[-1]
    if len(path) > LONGEST_NAME or len(parts) > MOST_LEVELS:
        raise UserError(
            f"{shown(path)} cannot be taken: a name may have {LONGEST_NAME} characters, and "
            f"{MOST_LEVELS - 1} folders may lie in each other."
        )
    for part in parts:
        plain = unquote(part)
        if reason := name_problem(part) or (plain != part and name_problem(plain)):
            whose = f"its name {reason}" if part == path else f"{shown(part)} {reason}"
            raise UserError(f"{shown(path)} cannot be taken: {whose}. Rename it.")
    if any(part.startswith(".") for part in parts):
        what = "lies in a hidden folder" if not name.startswith(".") else "is a hidden file"
        raise UserError(f"{shown(path)} cannot be taken: it {what}.")
    if name not in CAPTION_FILES and not name.lower().endswith(TAKEN):
        raise UserError(
            f"{shown(path)} is neither an image nor a file of captions. Images end in "
            f"{listed(sorted(EXTENSIONS), 30)}; captions are in {' or '.join(SIDECAR_SUFFIXES)} "
            f"files of the same names, or in {' or '.join(CAPTION_FILES)}."
        )


def check_different(paths: Sequence[str]) -> None:
    """Refuse files of the same name, and a file that has the name of a folder."""
    found = Counter(path.casefold() for path in paths)
    for path in paths:
        if found[path.casefold()] > 1:
            raise UserError(f"two files are called {shown(path)}. Rename one of them.")
        if folder := next((x for x in folders_of(path) if x.casefold() in found), None):
            raise UserError(f"{shown(folder)} is a file and a folder. Rename one of them.")


def folders_of(path: str) -> list[str]:
    """Return the folders in a path, such as "a" and "a/b" of "a/b/1.png"."""
    return [str(parent) for parent in PurePosixPath(path).parents][:-1]


def without_common_folder(paths: Sequence[str]) -> tuple[str, list[str]]:
    """Return the folder that all paths lie in, and the paths relative to it.

    Of several folders in each other it is the outermost one; "" if there is none.
    """
    first = {path.split("/")[0] if "/" in path else "" for path in paths}
    if len(first) != 1 or "" in first:
        return "", list(paths)
    (folder,) = first
    return folder, [path[len(folder) + 1 :] for path in paths]


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
