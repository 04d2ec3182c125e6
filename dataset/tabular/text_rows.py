"""CSV, TSV, JSONL and JSON files as tables: which columns they have, and their rows.

JSON is a list of rows, an object of file name -> captions, the annotations of COCO, or the splits
of Karpathy (`dataset_coco.json` and its like).
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from dataset.captions.rows import cells_to_marks
from dataset.captions.text_tables import LARGEST_JSON, csv_table, json_lines, parse
from dataset.splits import choose_split
from dataset.tabular.columns import Column
from foundation.errors import UserError, listed, one_line, shown
from foundation.files import read_text

CSV_SUFFIXES = {".csv": ",", ".tsv": "\t"}
JSONL_SUFFIXES = frozenset((".jsonl", ".ndjson"))
TEXT_SUFFIXES = frozenset((*CSV_SUFFIXES, *JSONL_SUFFIXES, ".json"))
FIRST_ROWS = 100  # from which the columns of a file of JSON objects are known
FILE, CAPTION = "file_name", "caption"  # columns of JSON that has none of its own

Content = Mapping[str, Any]  # column -> value


class TextRow(NamedTuple):
    """A row, and where it stands, such as "line 3"."""

    location: str
    content: Content


@dataclass(frozen=True)
class TextTable:
    """A table of text: its columns, and a function that reads its rows from the beginning."""

    path: Path
    columns: list[Column]
    rows: Callable[[], Iterator[TextRow]]


def open_text(path: Path, split: str | None) -> TextTable:
    """Open a table of text, by its ending.

    Raises:
        UserError: it is not such a table, or has no such split.
    """
    suffix = path.suffix.lower()
    if suffix in CSV_SUFFIXES:
        return open_csv(path, CSV_SUFFIXES[suffix])
    if suffix in JSONL_SUFFIXES:
        return TextTable(path, json_columns(path, jsonl_rows(path)), lambda: jsonl_rows(path))
    rows = json_rows(path, split)
    return TextTable(path, json_columns(path, iter(rows)), lambda: iter(rows))


# CSV ----------------------------------------------------------------------------------------------


def open_csv(path: Path, delimiter: str) -> TextTable:
    """Read the header of a CSV file."""
    names, _ = csv_table(path, delimiter)
    if not names:
        raise UserError(f"{one_line(path)} is empty; its first line must name the columns.")
    columns = [Column(name.strip(), "text") for name in names]
    return TextTable(path, columns, lambda: csv_rows(path, delimiter))


def csv_rows(path: Path, delimiter: str) -> Iterator[TextRow]:
    """Yield the rows below the header."""
    for number, row in csv_table(path, delimiter)[1]:
        cells = {name.strip(): cell for name, cell in row.items()}
        yield TextRow(f"line {number}", cells_to_marks(cells))


# JSON ---------------------------------------------------------------------------------------------


def jsonl_rows(path: Path) -> Iterator[TextRow]:
    """Yield the objects of a file with one per line; empty lines are skipped."""
    for number, value in json_lines(path):
        location = f"line {number}"
        yield TextRow(location, require_object(value, path, location))


def json_rows(path: Path, split: str | None) -> list[TextRow]:
    """Read a JSON file of one of the layouts that are known."""
    content = parse(read_text(path, LARGEST_JSON), one_line(path))
    if isinstance(content, dict) and isinstance(content.get("images"), list):
        images = [
            require_object(image, path, f"image {number}")
            for number, image in enumerate(content["images"])
        ]
        if any("sentences" in image for image in images[:FIRST_ROWS]):
            return karpathy_rows(path, images, split)
        if isinstance(content.get("annotations"), list):
            return coco_rows(path, images, content["annotations"])
    if isinstance(content, dict):
        return [
            TextRow(f"entry {number}", {FILE: name, CAPTION: value})
            for number, (name, value) in enumerate(content.items(), start=1)
        ]
    if not isinstance(content, list):
        raise UserError(
            f"{one_line(path)} must hold a list of rows, an object of file name -> caption, or "
            "annotations as COCO has them."
        )
    return [
        TextRow(f"entry {number}", require_object(row, path, f"entry {number}"))
        for number, row in enumerate(content, start=1)
    ]


def coco_rows(path: Path, images: list[Content], annotations: list[Any]) -> list[TextRow]:
    """Join the images and the captions of COCO; an image without captions is a row, too."""
    captions: dict[Any, list[Any]] = {}
    for number, row in enumerate(annotations):
        location = f"annotation {number}"
        annotation = require_object(row, path, location)
        image = annotation.get("image_id")
        if "caption" not in annotation or not isinstance(image, int | str):
            raise UserError(
                f"{one_line(path)} {location} needs 'image_id' and 'caption', but it has "
                f"{listed(list(annotation))}. Files of objects (instances_*.json) have no captions."
            )
        captions.setdefault(image, []).append(annotation["caption"])
    rows: list[TextRow] = []
    for number, image in enumerate(images):
        key = image.get("id")
        texts = captions.pop(key, []) if isinstance(key, int | str) else []
        rows.append(TextRow(f"image {number}", {FILE: image.get("file_name"), CAPTION: texts}))
    if captions:
        raise UserError(
            f"{one_line(path)} has captions of {len(captions)} images that it does not list, such "
            f"as image_id {shown(next(iter(captions)))}. Is it complete?"
        )
    return rows


def karpathy_rows(path: Path, images: list[Content], split: str | None) -> list[TextRow]:
    """Return the images of one split, with the sentences of each as captions."""
    found = sorted({str(image["split"]) for image in images if "split" in image})
    chosen = choose_split(found, split, path, listed(found)) if found else None
    rows: list[TextRow] = []
    for number, image in enumerate(images):
        if chosen is not None and image.get("split") != chosen:
            continue
        sentences = image.get("sentences")
        texts = sentences if isinstance(sentences, list) else [sentences]
        texts = [text.get("raw") if isinstance(text, dict) else text for text in texts]
        name = image.get("filename", image.get(FILE))
        if isinstance(name, str) and isinstance(folder := image.get("filepath"), str):
            name = f"{folder}/{name}"
        rows.append(TextRow(f"image {number}", {FILE: name, CAPTION: texts}))
    return rows


def json_columns(path: Path, rows: Iterator[TextRow]) -> list[Column]:
    """Return the fields of the first rows, with what they hold."""
    kinds: dict[str, str] = {}
    for row in islice(rows, FIRST_ROWS):
        for name, value in row.content.items():
            if kinds.get(name, "none") == "none":
                kinds[name] = kind_of_value(value)
    if not kinds:
        raise UserError(f"{one_line(path)} has no rows.")
    return [
        Column(name, kind if kind in ("text", "texts") else "other", "" if kind == "text" else kind)
        for name, kind in kinds.items()
    ]


def kind_of_value(value: object) -> str:
    """Return the kind of a column that holds such values."""
    if value is None or value == []:
        return "none"
    if isinstance(value, str):
        return "text"
    texts = isinstance(value, list) and all(isinstance(item, str) for item in value)
    return "texts" if texts else type(value).__name__


def require_object(value: object, path: Path, location: str) -> Content:
    """Return a JSON object; anything else is an error."""
    if not isinstance(value, dict):
        raise UserError(f"{one_line(path)} {location} is {shown(value)}, and an object is needed.")
    return value
