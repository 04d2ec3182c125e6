"""The five rules that find the captions of a folder of images, tried in a fixed order.

A rule gets the list of files of a folder and returns the captions that it finds, or None if there
are none of its kind. The first rule that returns some applies to the whole folder: captions
of different origin are never mixed.
"""

import posixpath
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path, PurePosixPath

from dataset.captions.files import FileList
from dataset.captions.guesses import class_captions, name_captions
from dataset.captions.rows import Caption, Row
from dataset.captions.sidecars import (
    SIDECAR_SUFFIXES,
    is_caption_like,
    match_sidecars,
    read_sidecar,
    stem,
)
from dataset.captions.text_tables import read_captions_json, read_csv, read_jsonl
from dataset.source import UnusableFile
from foundation.errors import UserError, one_line

METADATA: dict[str, Callable[[Path], Iterator[Row]]] = {  # the first that exists is used
    "metadata.jsonl": read_jsonl,
    "metadata.csv": read_csv,
}
CAPTIONS_JSON = "captions.json"
CAPTION_FILES = (*METADATA, CAPTIONS_JSON)
# Endings of files that people keep captions in. If none of them is understood, nothing is guessed.
TABLE_SUFFIXES = frozenset(
    (
        *(".arrow", ".avro", ".cap", ".captions", ".csv", ".db", ".feather", ".json", ".jsonl"),
        *(".lmdb", ".ndjson", ".ods", ".orc", ".parquet", ".pickle", ".pkl", ".sqlite"),
        *(".sqlite3", ".tags", ".text", ".toml", ".tsv", ".xls", ".xlsx", ".xml", ".yaml", ".yml"),
    )
)


@dataclass(frozen=True)
class CaptionSet:
    """The captions of a folder, and the rule that gave them.

    Args:
        rule: name of the rule, as messages show it.
        captions: image name -> captions.
        unusable: caption files and entries that belong to no image or cannot be read.
        notes: what the user should know.
        is_guess: the captions come from names that may have been chosen for another purpose.
    """

    rule: str
    captions: dict[str, list[Caption]] = field(default_factory=dict)
    unusable: list[UnusableFile] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    is_guess: bool = False


def find_captions(files: FileList) -> CaptionSet:
    """Return what the first rule finds that finds any captions."""
    for rule in (from_metadata, from_sidecars, from_captions_json, from_class_folders):
        if (captions := rule(files)) is not None:
            return captions
    by_name: dict[str, list[Caption]] = {k: [*v] for k, v in name_captions(files).items()}
    return CaptionSet("the name of the image file", by_name, is_guess=True)


def caption_files(files: FileList) -> set[str]:
    """Return the names of the files that `find_captions` reads; none is opened."""
    tables = {name: [n for n in files.others if posixpath.basename(n) == name] for name in METADATA}
    for names in tables.values():
        if names:
            return set(names)
    if sidecars := match_sidecars(files).files:
        return set(sidecars.values())
    return {name for name in files.others if posixpath.basename(name) == CAPTIONS_JSON}


# Tables -------------------------------------------------------------------------------------------


def from_metadata(files: FileList) -> CaptionSet | None:
    """Read metadata.jsonl, or else metadata.csv, at the root or in folders below it."""
    for file_name, read in METADATA.items():
        if tables := files.find(file_name):
            return from_tables(files, file_name, [(folder, read(path)) for folder, path in tables])
    return None


def from_captions_json(files: FileList) -> CaptionSet | None:
    """Read captions.json: an object of file name -> caption or captions, or a list of rows."""
    if tables := files.find(CAPTIONS_JSON):
        rows = [(folder, read_captions_json(path)) for folder, path in tables]
        return from_tables(files, CAPTIONS_JSON, rows)
    return None


def from_tables(
    files: FileList, file_name: str, tables: Sequence[tuple[PurePosixPath, Iterable[Row]]]
) -> CaptionSet:
    """Collect the captions of all tables of this name."""
    rule = f"{file_name} ({len(tables)} files)" if len(tables) > 1 else file_name
    result = CaptionSet(rule)
    unlike: defaultdict[str, list[tuple[PurePosixPath, Row]]] = defaultdict(list)
    for folder, rows in tables:
        for row in rows:
            name = files.find_image(row.image, folder)
            if name is None and (other := files.find_without_case(row.image, folder)) is not None:
                unlike[other].append((folder, row))
            elif name is None:
                leave_out(result, files, folder, row, "there is no such image")
            elif name in files.images:
                result.captions.setdefault(name, []).extend(row.captions)
    add_unlike(result, files, unlike)
    if file_name == "metadata.jsonl" and files.find("metadata.csv"):
        result.notes.append("metadata.csv is not used, since there is a metadata.jsonl")
    return result


def add_unlike(
    result: CaptionSet, files: FileList, unlike: Mapping[str, list[tuple[PurePosixPath, Row]]]
) -> None:
    """Add the captions of images that a table writes with other capitals.

    Where it has both a.png and A.PNG, and there is one file, two images have become one: on a disk
    that does not distinguish capitals, the second has replaced the first.
    """
    for name, rows in unlike.items():
        if name in result.captions or len({row.image for _, row in rows}) > 1:
            reason = f"there is only {one_line(name, 500)}, which another row names, too"
            for folder, row in rows:
                leave_out(result, files, folder, row, reason)
        elif name in files.images:
            for _, row in rows:
                result.captions.setdefault(name, []).extend(row.captions)


def leave_out(
    result: CaptionSet, files: FileList, folder: PurePosixPath, row: Row, reason: str
) -> None:
    """Note that the image of a row is not used."""
    path = files.root / folder / one_line(row.image, 500)
    result.unusable.append(UnusableFile(path, f"is named in {row.location}, but {reason}"))


# Files next to the images -------------------------------------------------------------------------


def from_sidecars(files: FileList) -> CaptionSet | None:
    """Read the .txt or .caption file next to each image; every line is a caption."""
    sidecars = match_sidecars(files)
    if not sidecars.files:
        return None
    result = CaptionSet("a .txt or .caption file next to each image")
    read: dict[str, list[str] | UnusableFile] = {}  # two images may share a file
    for image, name in sidecars.files.items():
        if name not in read:
            read[name] = read_sidecar(files, name)
            if isinstance(failure := read[name], UnusableFile):
                result.unusable.append(failure)
        captions = read[name]
        result.captions[image] = [] if isinstance(captions, UnusableFile) else [*captions]
    reason = "is a caption without an image of the same name"
    result.unusable.extend(
        UnusableFile(files.root / files.others[name], reason)
        for name in sidecars.without_image
        if is_caption_like(name)
    )
    if sidecars.unused:
        result.notes.append(
            f"{len(sidecars.unused)} caption files are not used, because their images have another "
            f"one, such as {one_line(files.root / sidecars.unused[0])}"
        )
    return result


# Guesses ------------------------------------------------------------------------------------------


def from_class_folders(files: FileList) -> CaptionSet | None:
    """Use the name of each image's folder."""
    captions = class_captions(files)
    if captions is None:
        return None
    by_name: dict[str, list[Caption]] = {name: [*texts] for name, texts in captions.items()}
    return CaptionSet("the name of the class folder", by_name, is_guess=True)


def near_misses(files: FileList, captions: CaptionSet) -> list[str]:
    """Write notes on files that look like captions but are not read.

    Raises:
        UserError: there are such files, and captions would be guessed from names.
    """
    notes: list[str] = []
    names = {posixpath.basename(name) for name in files.others if not is_sidecar(name)}
    for name in sorted(name for name in names - set(CAPTION_FILES) if len(name) <= 30):
        near = get_close_matches(name.lower(), CAPTION_FILES, n=1, cutoff=0.8)
        if near:
            notes += [
                f"found {one_line(path)}; did you mean {near[0]}?" for _, path in files.find(name)
            ]
    if captions.is_guess and (notes or (notes := caption_like_files(files))):
        raise UserError(
            f"{notes[0]}\nWithout it, captions would be guessed from {captions.rule}. Rename or "
            "move the file, or remove it."
        )
    return notes


def is_sidecar(name: str) -> bool:
    """Return whether a name has the ending of a caption file."""
    return name.lower().endswith(SIDECAR_SUFFIXES)


def caption_like_files(files: FileList) -> list[str]:
    """Write notes on files that may hold captions and are not understood, most likely first."""
    above = files.root.absolute().parent
    tables = [above / name for name in CAPTION_FILES if (above / name).is_file()]
    notes = [f"found {one_line(path)}; did you mean the data folder {above}?" for path in tables]
    image_stems = {stem(name) for name in files.images}
    beside = Counter(
        posixpath.splitext(name)[1] for name in files.others if stem(name) in image_stems
    )
    for suffix, count in beside.items():
        notes.append(
            f"found {count} {one_line(suffix)} files next to images of the same name; did you mean "
            f"{' or '.join(SIDECAR_SUFFIXES)}?"
        )
    unmatched = [
        name
        for name in files.others
        if (is_sidecar(name) and is_caption_like(name))
        or (posixpath.splitext(name)[1].lower() in TABLE_SUFFIXES)
    ]
    if unmatched:
        path = one_line(files.root / files.others[unmatched[0]])
        more = f" and {len(unmatched) - 1} more files" if len(unmatched) > 1 else ""
        notes.append(
            f"found {path}{more}, which may hold captions and cannot be matched with the images. "
            "A caption file lies next to its image and has its name (red apple.txt for red "
            f"apple.png); a table is named {' or '.join(CAPTION_FILES)}."
        )
    return notes
