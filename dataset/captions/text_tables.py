"""Tables of captions: JSONL, CSV and JSON files to rows, read line by line and within bounds."""

import csv
from collections.abc import Iterable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

from dataset.captions.rows import (
    IMAGE_FIELDS,
    TEXT_FIELDS,
    Row,
    cells_to_marks,
    check_row,
)
from foundation.errors import UserError, listed, one_line, shown
from foundation.files import MEGABYTE, decode_text, open_file, read_text
from foundation.json_reading import load_json

LONGEST_LINE = MEGABYTE  # bytes
LARGEST_JSON = 256 * MEGABYTE  # bytes; it is in memory as a whole
CsvRow = tuple[int, dict[str, str]]  # number of the first line, column -> cell
DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}


def read_jsonl(path: Path) -> Iterator[Row]:
    """Yield the rows of a file with one JSON object per line; empty lines are skipped."""
    for number, value in json_lines(path):
        yield check_row(value, f"{path.name} line {number}", f"{one_line(path)} line {number}")


def read_csv(path: Path, delimiter: str = ",") -> Iterator[Row]:
    """Yield the rows of a CSV file whose header names the columns."""
    columns, rows = csv_table(path, delimiter)
    if not columns:
        raise UserError(f"{one_line(path)} is empty. It needs a header with file_name and text.")
    check_header(columns, path)
    for number, cells in rows:
        row = cells_to_marks(cells)
        yield check_row(row, f"{path.name} line {number}", f"{one_line(path)} line {number}")


def read_captions_json(path: Path) -> Iterator[Row]:
    """Yield the rows of a file that holds one JSON object or one JSON list."""
    source = one_line(path)
    content = parse(read_text(path, LARGEST_JSON), source)
    if isinstance(content, dict):
        content = [{"file_name": image, "text": text} for image, text in content.items()]
    if not isinstance(content, list):
        raise UserError(f"{source} must hold an object of file name -> caption, or a list of rows.")
    for number, row in enumerate(content, start=1):
        yield check_row(row, f"{path.name} entry {number}", f"{source} entry {number}")


def parse(text: str, source: str) -> Any:
    """Return the value of a JSON text; messages name the source."""
    try:
        return load_json(text)
    except UserError as error:
        raise UserError(f"{source} {error}") from None


def json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    """Yield (number, value) of each line that is not empty."""
    for number, line in enumerate(text_lines(path), start=1):
        if line.strip():
            yield number, parse(line, f"{one_line(path)} line {number}")


# Lines --------------------------------------------------------------------------------------------


def text_lines(path: Path) -> Iterator[str]:
    """Yield the lines of a UTF-8 file with their line feeds, without holding all in memory.

    Raises:
        UserError: it is no text, or a line is longer than LONGEST_LINE.
    """
    with open_file(path) as stream:
        for number in count(1):
            line = stream.readline(LONGEST_LINE + 1)
            if not line:
                return
            if len(line) > LONGEST_LINE:
                raise UserError(
                    f"{one_line(path)} line {number} has more than {LONGEST_LINE:,} bytes, so it "
                    "is no table of captions."
                )
            try:
                text = decode_text(line, first_line=number)
            except UserError as error:
                raise UserError(f"{one_line(path)} {error}") from None
            if text.find("\n") in (-1, len(text) - 1):
                yield text
            else:  # lines that end in carriage returns, as old Macs wrote them
                yield from (piece + "\n" for piece in text.removesuffix("\n").split("\n"))


# CSV ----------------------------------------------------------------------------------------------


def csv_table(path: Path, delimiter: str) -> tuple[list[str], Iterator[CsvRow]]:
    """Return the names of the columns, none if the file is empty, and the rows below them.

    Raises:
        UserError: the header has another delimiter, or a name twice. While the rows are read: one
            has more or fewer cells than the header.
    """
    records = csv_records(path, delimiter)
    _, columns = next(records, (1, []))
    source = f"{one_line(path)} line 1"
    other = next((d for d in DELIMITERS if d != delimiter and d in "".join(columns[:1])), None)
    if len(columns) == 1 and other is not None:
        raise UserError(
            f"{source}: the columns are separated by {DELIMITERS[other]}: {shown(columns[0])}. "
            f"Save the table with {DELIMITERS.get(delimiter, delimiter)} between them."
        )
    if len(set(columns)) < len(columns):
        repeated = next(name for name in columns if columns.count(name) > 1)
        raise UserError(f"{source}: the column {shown(repeated)} is there more than once.")
    return columns, csv_rows(records, columns, path, delimiter)


def csv_rows(
    records: Iterator[tuple[int, list[str]]], columns: list[str], path: Path, delimiter: str
) -> Iterator[CsvRow]:
    """Yield (number of the first line, column -> cell) of each record."""
    for number, cells in records:
        if len(cells) != len(columns):
            kind = "more" if len(cells) > len(columns) else "fewer"
            raise UserError(
                f"{one_line(path)} line {number} has {kind} cells than the header: {len(cells)}, "
                f"not {len(columns)}. Put captions that contain "
                f"{DELIMITERS.get(delimiter, delimiter)} in double quotes."
            )
        yield number, dict(zip(columns, cells, strict=True))


def csv_records(path: Path, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Yield (number of the first line, cells) of each record that is not empty.

    Raises:
        UserError: a quote is not closed, or text follows a closing quote. The line where the quote
            began is named: the end may be thousands of lines below.
    """
    record: list[str] = []  # the lines of the record that is being read

    def lines() -> Iterator[str]:
        for line in text_lines(path):
            record.append(line)
            yield line

    # A cell has at most csv.field_size_limit() characters; an open quote ends there.
    reader = csv.reader(lines(), delimiter=delimiter, strict=True)
    while True:
        record.clear()
        start = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            number = start + open_quote(record, delimiter)
            text = record[number - start] if record else ""
            raise UserError(
                f"{one_line(path)} line {number}: a double quote begins a cell there that is not "
                f"closed as it should be ({error}): {shown(text.rstrip())}. Close it at the end of "
                'the cell; inside quotes, write a quote as "".'
            ) from None
        if cells:
            yield start, cells


def open_quote(lines: Iterable[str], delimiter: str) -> int:
    """Return in which of these lines of one record the last quoted cell begins."""
    begin, inside, at_start = 0, False, True
    for number, line in enumerate(lines):
        for character in line:
            if inside:
                inside = character != '"'
            elif character == '"' and at_start:
                begin, inside = number, True
            at_start = character == delimiter and not inside
    return begin


def check_header(columns: list[str], path: Path) -> None:
    """Raise a UserError if the columns of image and caption are missing."""
    if not set(IMAGE_FIELDS) & set(columns) or not set(TEXT_FIELDS) & set(columns):
        raise UserError(
            f"{one_line(path)} line 1: a table needs the columns 'file_name' (relative to the "
            f"file) and 'text' or 'caption', but it has {listed(columns)}. Rename the columns."
        )
