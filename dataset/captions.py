"""Captions of a folder of images: five rules that find them, tried in a fixed order.

A rule gets the list of files of a folder and returns the captions that it finds, or None if there
are none of its kind. The first rule that returns some applies to the whole folder: captions
of different origin are never mixed.
"""

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import NamedTuple
from unicodedata import normalize

from dataset.source import UnusableFile
from foundation.errors import UserError

CAPTION_FILES = ("metadata.jsonl", "metadata.csv", "captions.json")
SIDECAR_SUFFIXES = (".txt", ".caption")  # where an image has both, the first one is used
NOT_CAPTIONS = frozenset(("attribution", "classes", "copying", "labels", "license", "readme"))
COUNTER = re.compile(r"[\s(]*\d+\)?$")  # the end of "red apple 003" and of "red apple (3)"
REPEATS = re.compile(r"^\d+_")  # kohya-ss's scripts name folders 10_cat: ten repeats per epoch
CAMERA = re.compile(r"(dsc[fn]?|frame|gopr|image|img|mvi|photo|pic|picture|screenshot|untitled)?")


@dataclass(frozen=True)
class FileList:
    """The files below a folder.

    Names are relative to the folder, with slashes, in Unicode's composed form (NFC). The
    dictionaries map them to the same names as the disk has them.
    """

    root: Path
    images: dict[str, str]
    others: dict[str, str]

    def find(self, file_name: str) -> list[tuple[PurePosixPath, Path]]:
        """Return (folder relative to the root, path) of every file with this name."""
        paths = [
            (PurePosixPath(name), self.root / on_disk)
            for name, on_disk in self.others.items()
            if name.endswith(file_name)
        ]
        return [(name.parent, path) for name, path in paths if name.name == file_name]


@dataclass(frozen=True)
class CaptionSet:
    """The captions of a folder, and the rule that gave them.

    Args:
        rule: name of the rule, as messages show it.
        captions: image name -> captions.
        unusable: caption files and entries that belong to no image or cannot be read.
        is_guess: the captions come from names that may have been chosen for another purpose.
    """

    rule: str
    captions: dict[str, list[str]] = field(default_factory=dict)
    unusable: list[UnusableFile] = field(default_factory=list)
    is_guess: bool = False


class Row(NamedTuple):
    """A row of a caption table."""

    image: str  # relative to the folder of the table
    captions: list[str]
    location: str  # such as "metadata.jsonl line 3"


# Tables of captions -------------------------------------------------------------------------------


def from_metadata(files: FileList) -> CaptionSet | None:
    """Read metadata.jsonl, or else metadata.csv, at the root or in folders below it."""
    for file_name, read in (("metadata.jsonl", read_jsonl), ("metadata.csv", read_csv)):
        if tables := files.find(file_name):
            return from_tables(files, file_name, [(folder, read(path)) for folder, path in tables])
    return None


def from_captions_json(files: FileList) -> CaptionSet | None:
    """Read captions.json: an object of file name -> caption or captions, or a list of rows."""
    if tables := files.find("captions.json"):
        rows = [(folder, read_captions_json(path)) for folder, path in tables]
        return from_tables(files, "captions.json", rows)
    return None


def from_tables(
    files: FileList, file_name: str, tables: Sequence[tuple[PurePosixPath, Iterable[Row]]]
) -> CaptionSet:
    """Collect the captions of all tables of this name."""
    rule = f"{file_name} ({len(tables)} files)" if len(tables) > 1 else file_name
    result = CaptionSet(rule)
    for folder, rows in tables:
        for row in rows:
            name = normalize("NFC", (folder / row.image).as_posix())
            if name in files.images:
                result.captions.setdefault(name, []).extend(row.captions)
            else:
                reason = f"is named in {row.location}, but there is no such image"
                result.unusable.append(UnusableFile(files.root / name, reason))
    return result


def read_jsonl(path: Path) -> Iterator[Row]:
    """Yield the rows of a file with one JSON object per line; empty lines are skipped."""
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if line.strip():
            location = f"{path.name} line {number}"
            yield check_row(parse_json(line, f"{path} line {number}"), path, location)


def read_csv(path: Path) -> Iterator[Row]:
    """Yield the rows of a CSV file whose header names the columns."""
    reader = csv.DictReader(io.StringIO(read_text(path), newline=""))
    for row in reader:
        location = f"{path.name} line {reader.line_num}"
        if None in row:
            raise UserError(
                f"{path.parent / location} has more cells than the header. "
                "Put captions that contain commas in double quotes."
            )
        yield check_row(row, path, location)


def read_captions_json(path: Path) -> Iterator[Row]:
    """Yield the rows of a file that holds one JSON object or one JSON list."""
    content = parse_json(read_text(path), str(path))
    if isinstance(content, dict):
        content = [{"file_name": image, "text": text} for image, text in content.items()]
    if not isinstance(content, list):
        raise UserError(f"{path} must hold an object of file name -> caption, or a list of rows.")
    for number, row in enumerate(content, start=1):
        yield check_row(row, path, f"{path.name} entry {number}")


def check_row(row: object, path: Path, location: str) -> Row:
    """Check the two fields of a row of the table `path`; empty captions are left out."""
    if not isinstance(row, dict) or "file_name" not in row or "text" not in row:
        has = f"it has {', '.join(map(str, row))}" if isinstance(row, dict) else f"it is {row!r}"
        raise UserError(
            f"{path.parent / location}: a row needs 'file_name' (relative to {path.name}) and "
            f"'text' (a caption, or a list of captions), but {has}. Rename the fields."
        )
    image, text = row["file_name"], row["text"]
    captions = text if isinstance(text, list) else [text or ""]
    if not isinstance(image, str) or not all(isinstance(caption, str) for caption in captions):
        raise UserError(
            f"{path.parent / location}: 'file_name' must be a string, and 'text' a string or a "
            f"list of strings; got {image!r} and {text!r}."
        )
    captions = [caption.strip() for caption in captions if caption.strip()]
    return Row(image, captions, location)


# One caption file per image -----------------------------------------------------------------------


def from_sidecars(files: FileList) -> CaptionSet | None:
    """Read the .txt or .caption file next to each image; every line is a caption."""
    result = CaptionSet("a .txt or .caption file next to each image")
    images = {str(PurePosixPath(name).with_suffix("")): name for name in files.images}
    without_image: list[Path] = []
    for suffix in SIDECAR_SUFFIXES:
        for name, on_disk in files.others.items():
            if not name.lower().endswith(suffix):
                continue
            stem, path = str(PurePosixPath(name).with_suffix("")), files.root / on_disk
            if stem not in images:
                without_image.append(path)
                continue
            try:
                captions = split_lines(read_text(path))
            except UserError as error:
                result.unusable.append(UnusableFile(path, str(error)))
                captions = []
            result.captions.setdefault(images[stem], captions)
    if not result.captions:
        return None
    reason = "is a caption without an image of the same name"
    result.unusable.extend(
        UnusableFile(path, reason)
        for path in without_image
        if path.stem.lower() not in NOT_CAPTIONS
    )
    return result


# Captions from names ------------------------------------------------------------------------------


def from_class_folders(files: FileList) -> CaptionSet | None:
    """Use the name of each image's folder, if there are several folders and each is a word."""
    folders = {name: PurePosixPath(name).parent.name for name in files.images}
    classes = set(folders.values())
    if all(REPEATS.match(folder) for folder in classes):
        folders = {name: REPEATS.sub("", folder) for name, folder in folders.items()}
    captions = {name: [plain_words(folder)] for name, folder in folders.items()}
    if len(classes) < 2 or not all(has_word(text) for (text,) in captions.values()):
        return None
    return CaptionSet("the name of the class folder", captions, is_guess=True)


def from_file_names(files: FileList) -> CaptionSet:
    """Use the image's own name without a counter at its end; names that cameras give are not used.

    This is the last rule, so it returns a set even if that is empty.
    """
    result = CaptionSet("the name of the image file", is_guess=True)
    for name in files.images:
        words = COUNTER.sub("", plain_words(PurePosixPath(name).stem)).strip()
        if has_word(words) and not CAMERA.fullmatch(words.lower()):
            result.captions[name] = [words]
    return result


def find_captions(files: FileList) -> CaptionSet:
    """Return what the first rule finds that finds any captions."""
    for rule in (from_metadata, from_sidecars, from_captions_json, from_class_folders):
        if (captions := rule(files)) is not None:
            return captions
    return from_file_names(files)


# Text ---------------------------------------------------------------------------------------------


def split_lines(text: str) -> list[str]:
    """Return the lines of a text that are not empty, without white space around them."""
    return [line.strip() for line in text.split("\n") if line.strip()]


def plain_words(name: str) -> str:
    """Turn a name into words: 'red_apple-tree' -> 'red apple tree'."""
    return re.sub(r"[\s_-]+", " ", name).strip()


def has_word(text: str) -> bool:
    """Return whether any word has letters and no digit, unlike "0017", "1F469 200D" or "a8f3c2"."""
    return any(
        any(character.isalpha() for character in word)
        and not any(character.isdigit() for character in word)
        for word in text.split()
    )


def read_text(path: Path) -> str:
    """Read a UTF-8 file, with or without the byte order mark that Windows programs write."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text; save it as UTF-8.") from error


def parse_json(text: str, location: str) -> object:
    """Parse JSON; `location` stands in the message if it is not valid."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{location} is not valid JSON: {error}") from error
