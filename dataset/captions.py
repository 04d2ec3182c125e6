"""The rules by which captions are found, in the order in which they are tried.

A rule looks at the listing of a folder and gives the captions it finds, or None if nothing in the
folder calls for it. The first rule that answers counts for the whole folder: captions of different
origin are never mixed.
"""

import csv
import io
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from unicodedata import normalize

from dataset.members import Source
from foundation.errors import UserError

SIDECARS = (".txt", ".caption")  # in this order
NOT_CAPTIONS = frozenset(("attribution", "classes", "copying", "labels", "license", "readme"))
COUNTER = re.compile(r"[\s(]*\d+\)?$")  # of "red apple 003" and "red apple (3)"
REPEATS = re.compile(r"^\d+_")  # of kohya's folders: 10_name
CAMERA = re.compile(r"(dsc[fn]?|frame|gopr|image|img|mvi|photo|pic|picture|screenshot|untitled)?")

SHOWN = 5  # paths named in a message

Row = tuple[str, list[str], str]  # image relative to the captions' file, its captions, the place


@dataclass(frozen=True)
class Unusable:
    """A file or an entry that was left out, and why."""

    path: Source
    reason: str

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


@dataclass(frozen=True)
class Listing:
    """What lies in a folder: names relative to it, with slashes -> the same as the disk has them.

    The former are in Unicode's composed form.
    """

    root: Path
    images: dict[str, str]
    others: dict[str, str]

    def others_called(self, file: str) -> list[tuple[PurePosixPath, Path]]:
        """The folder's name and the path, for each file of this name anywhere below the root."""
        names = (item for item in self.others.items() if item[0].endswith(file))
        paths = ((PurePosixPath(name), self.root / on_disk) for name, on_disk in names)
        return [(name.parent, path) for name, path in paths if name.name == file]


@dataclass(frozen=True)
class Found:
    """What a rule found: image's name -> captions."""

    rule: str
    captions: dict[str, list[str]] = field(default_factory=dict)
    unusable: list[Unusable] = field(default_factory=list)
    is_guess: bool = False  # from names that may have been chosen for another purpose


def from_metadata(listing: Listing) -> Found | None:
    """metadata.jsonl, or else metadata.csv, at the root or in folders below it."""
    for file, read in (("metadata.jsonl", read_jsonl), ("metadata.csv", read_csv)):
        if tables := listing.others_called(file):
            return from_rows(listing, file, [(folder, read(path)) for folder, path in tables])
    return None


def from_captions_json(listing: Listing) -> Found | None:
    """captions.json: an object of file name -> caption or captions, or a list of rows."""
    if tables := listing.others_called("captions.json"):
        rows = [(folder, read_captions_json(path)) for folder, path in tables]
        return from_rows(listing, "captions.json", rows)
    return None


def from_rows(
    listing: Listing, file: str, tables: list[tuple[PurePosixPath, Iterator[Row]]]
) -> Found:
    found = Found(f"{file} ({len(tables)} files)" if len(tables) > 1 else file)
    for folder, rows in tables:
        for image, captions, place in rows:
            name = normalize("NFC", (folder / image).as_posix())
            if name in listing.images:
                found.captions.setdefault(name, []).extend(captions)
            else:
                reason = f"is named in {place}, but there is no such image"
                found.unusable.append(Unusable(listing.root / name, reason))
    return found


def read_jsonl(path: Path) -> Iterator[Row]:
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if line.strip():
            place = f"{path.name} line {number}"
            yield checked_row(parse_json(line, f"{path} line {number}"), path, place)


def read_csv(path: Path) -> Iterator[Row]:
    reader = csv.DictReader(io.StringIO(read_text(path), newline=""))
    for row in reader:
        place = f"{path.name} line {reader.line_num}"
        if None in row:
            raise UserError(
                f"{path.parent / place} has more cells than the header. "
                "A caption with commas must stand in double quotes."
            )
        yield checked_row(row, path, place)


def read_captions_json(path: Path) -> Iterator[Row]:
    content = parse_json(read_text(path), str(path))
    if isinstance(content, dict):
        content = [{"file_name": image, "text": text} for image, text in content.items()]
    if not isinstance(content, list):
        raise UserError(f"{path} must hold an object of file name -> caption, or a list of rows.")
    for number, row in enumerate(content, start=1):
        yield checked_row(row, path, f"{path.name} entry {number}")


def checked_row(row: object, path: Path, place: str) -> Row:
    """The two fields of a row; empty captions are left out."""
    if not isinstance(row, dict) or "file_name" not in row or "text" not in row:
        has = f"it has {', '.join(map(str, row))}" if isinstance(row, dict) else f"it is {row!r}"
        raise UserError(
            f"{path.parent / place}: a row needs 'file_name' (relative to {path.name}) and 'text' "
            f"(a caption, or a list of captions), but {has}. Rename the fields."
        )
    image, text = row["file_name"], row["text"]
    captions = text if isinstance(text, list) else [text or ""]
    if not isinstance(image, str) or not all(isinstance(caption, str) for caption in captions):
        raise UserError(
            f"{path.parent / place}: 'file_name' must be a string, and 'text' a string or a list "
            f"of strings; got {image!r} and {text!r}."
        )
    return image, [caption.strip() for caption in captions if caption.strip()], place


def from_sidecars(listing: Listing) -> Found | None:
    """One .txt or .caption beside an image, with the same name; every line is a caption."""
    found = Found("a .txt or .caption file beside each image")
    images = {str(PurePosixPath(name).with_suffix("")): name for name in listing.images}
    orphans = []
    for suffix in SIDECARS:
        for name, on_disk in listing.others.items():
            if not name.lower().endswith(suffix):
                continue
            stem, path = str(PurePosixPath(name).with_suffix("")), listing.root / on_disk
            if stem not in images:
                orphans.append(path)
                continue
            try:
                lines = caption_lines(read_text(path))
            except ValueError as error:
                found.unusable.append(Unusable(path, str(error)))
                lines = []
            found.captions.setdefault(images[stem], lines)
    if not found.captions:
        return None
    for path in orphans:
        if path.stem.lower() not in NOT_CAPTIONS:
            found.unusable.append(Unusable(path, "is a caption without an image of the same name"))
    return found


def from_class_folders(listing: Listing) -> Found | None:
    """The name of the folder an image lies in, if there are several and each is a word."""
    folders = {name: PurePosixPath(name).parent.name for name in listing.images}
    classes = set(folders.values())
    if all(REPEATS.match(folder) for folder in classes):
        folders = {name: REPEATS.sub("", folder) for name, folder in folders.items()}
    captions = {name: [plain_words(folder)] for name, folder in folders.items()}
    if len(classes) < 2 or not all(is_speech(words) for (words,) in captions.values()):
        return None
    return Found("the name of the class folder", captions, is_guess=True)


def from_file_names(listing: Listing) -> Found:
    """The image's own name without a counter at its end; not those that cameras give."""
    found = Found("the name of the image file", is_guess=True)
    for name in listing.images:
        words = COUNTER.sub("", plain_words(PurePosixPath(name).stem)).strip()
        if is_speech(words) and not CAMERA.fullmatch(words.lower()):
            found.captions[name] = [words]
    return found


RULES = (from_metadata, from_sidecars, from_captions_json, from_class_folders, from_file_names)


def caption_lines(text: str) -> list[str]:
    """Every line of a text file is a caption."""
    return [line.strip() for line in text.split("\n") if line.strip()]


def plain_words(name: str) -> str:
    """'red_apple-tree' -> 'red apple tree'"""
    return re.sub(r"[\s_-]+", " ", name).strip()


def is_speech(words: str) -> bool:
    """Whether any word has letters and no digit: not so in "0017", "1F469 200D" or "a8f3c2"."""
    return any(
        any(character.isalpha() for character in word)
        and not any(character.isdigit() for character in word)
        for word in words.split()
    )


def read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")  # Windows programs begin files with a mark
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text; save it as UTF-8.") from error


def parse_json(text: str, place: str) -> object:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{place} is not valid JSON: {error}") from error


def listed(items: Sequence, most: int = SHOWN) -> str:
    """The first few, one a line."""
    lines = [f"  {item}" for item in items[:most]]
    more = len(items) - most
    return "\n".join([*lines, f"  and {more} more"] if more > 0 else lines)
