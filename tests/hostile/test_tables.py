"""Hostile tables: parquet, Arrow, CSV, JSON and COCO, given to check.py."""

import json
import os
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from tests.helpers.data.table_cases import (
    GOOD,
    READY,
    Content,
    as_arrow,
    as_parquet,
    case,
    content_of,
    images,
    named,
    png,
)
from tests.helpers.hostile import check_case, in_ci

# The bytes of the file.

CUT = [
    case(f"{kind} cut to {share} %", f"x.{kind}", content[: len(content) * share // 100], right)
    for kind, content in (("parquet", as_parquet(GOOD)), ("arrow", as_arrow(GOOD, of_file=True)))
    for share, right in ((0, named(f"x.{kind}")), (50, named(f"x.{kind}")), (98, named(kind)))
]
BLOBS: dict[str, Content] = {
    "random bytes": bytes(range(256)) * 20,
    "zeros": bytes(5000),
    "a picture": png(),
    "a pipe": lambda path: os.mkfifo(path),
    "a link to zeros": lambda path: path.symlink_to("/dev/zero"),
    "a link to itself": lambda path: path.symlink_to(path.name),
    "a broken link": lambda path: path.symlink_to("nowhere"),
    "a folder": lambda path: path.mkdir(),
}
WRONG_FILES = [
    case(f"{kind} is {name}", f"x.{kind}", content, named("x"))
    for kind in ("parquet", "arrow", "csv", "tsv", "jsonl", "json")
    for name, content in BLOBS.items()
]


def with_number(content: bytes, number: int, place: int) -> bytes:
    """Write a number of 32 bits over a part of a file; place: counted from the end."""
    start = len(content) - place
    return content[:start] + number.to_bytes(4, "little") + content[start + 4 :]


LIES = [
    case("a footer of 2 GB", "x.parquet", with_number(as_parquet(GOOD), 2**31 - 1, 8), named("x")),
    case("a footer of 4 GB", "x.parquet", with_number(as_parquet(GOOD), 2**32 - 1, 8), named("x")),
    case("a footer of 0", "x.parquet", with_number(as_parquet(GOOD), 0, 8), named("x")),
    case("an encrypted footer", "x.parquet", as_parquet(GOOD)[:-4] + b"PARE", named("x")),
    case("parquet named arrow", "x.arrow", as_parquet(GOOD), named("x")),
    case("arrow named parquet", "x.parquet", as_arrow(GOOD), named("x")),
    case("offsets beyond the file", "x.arrow", lambda p: p.write_bytes(wild_offsets()), named("x")),
]


def wild_offsets() -> bytes:
    """Return an Arrow stream whose second picture ends far outside of the file."""
    lengths = [len(value) for value in GOOD["image"]]
    right = sum(lengths).to_bytes(4, "little")
    content = as_arrow(GOOD)
    place = content.index(bytes(4) + lengths[0].to_bytes(4, "little") + right) + 8
    return content[:place] + (2**31 - 16).to_bytes(4, "little") + content[place + 4 :]


# Columns.

COLUMNS = {
    "no columns": ({}, named("column")),
    "no rows": ({"image": pa.array([], pa.binary()), "text": pa.array([], pa.string())}, named("")),
    "a column twice": (None, named("image")),
    "images are numbers": ({"image": [1, 2], "text": ["x", "y"]}, named("image")),
    "images are null": ({"image": pa.nulls(2), "text": ["x", "y"]}, named("image")),
    "images are NaN": ({"image": [float("nan")] * 2, "text": ["x", "y"]}, named("image")),
    "a picture is null": ({"image": images(png(), None), "text": ["x", "y"]}, named("row 1")),
    "a picture is text": ({"image": images(png(), b"red"), "text": ["x", "y"]}, named("row 1")),
    "a picture is empty": ({"image": images(png(), b""), "text": ["x", "y"]}, named("row 1")),
    "captions are numbers": ({"image": images(png()), "text": [1]}, named("caption")),
    "captions are null": (
        {"image": images(png()), "text": pa.array([None], pa.string())},
        named("no caption"),
    ),
    "captions are no UTF-8": (
        {"image": images(png()), "text": pa.array([b"\xff"]).view(pa.string())},
        named("UTF-8"),
    ),
    "captions have a zero": ({"image": images(png()), "text": ["a\0b"]}, named("zero")),
    "a caption of a megabyte": ({"image": images(png()), "text": ["x" * 2**20]}, named("row 0")),
    "captions in a struct": ({"image": images(png()), "text": [{"en": "x"}]}, named("caption")),
    "large types": (
        {
            "image": pa.array([png()], pa.large_binary()),
            "text": pa.array(["x"], pa.large_string()),
        },
        READY,
    ),
    "dictionaries": ({**GOOD, "text": pa.array(["x", "x"]).dictionary_encode()}, READY),
    "names that leave the folder": (
        {"file_name": ["../../etc/passwd", "a.png"], "text": ["x", "y"]},
        named("passwd"),
    ),
    "control characters": (
        {"file_name": ["\x1b[2J.png", "a.png"], "text": ["x", "\x1b[31m"]},
        named(r"\\x1b"),
    ),
    "addresses": ({"url": ["https://example.org/a.png"], "text": ["x"]}, named("network")),
    "two columns of images": ({"image": images(png()), "other": images(png())}, named("other")),
    "many columns": ({f"c{k}": [k] for k in range(3000)}, named("column")),
}


WRONG_COLUMNS = [
    case(
        f"{kind}: {name}",
        f"x.{kind}",
        lambda path, kind=kind, columns=columns: path.write_bytes(content_of(kind, columns)),
        right,
    )
    for kind in ("parquet", "arrow")
    for name, (columns, right) in COLUMNS.items()
]


def bomb(path: Path, column: str) -> None:
    """Write a small file whose column is large: the same megabytes in every row."""
    rows = 4096  # much more than the cache of row groups takes
    large = pa.array([b"\x89PNG" + bytes(2**20)] if column == "image" else ["x" * 2**20])
    values = pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), large)
    other = pa.array([png()] * rows) if column == "text" else pa.array(["x"] * rows)
    table = pa.table({column: values, "text" if column == "image" else "image": other})
    parquet.write_table(table, path, compression="zstd", store_schema=False)


BOMBS = [
    case("a bomb of captions", "x.parquet", lambda p: bomb(p, "text"), named("row 0")),
    case("a bomb of pictures", "x.parquet", lambda p: bomb(p, "image"), named("row 0")),
]


# Text.

DEEP = "[" * 100_000
ROW = '{"file_name": "a.png", "text": "red"}'
TEXTS = {
    "x.csv": {
        "UTF-16": ("file_name,text\na.png,x".encode("utf-16"), named("UTF")),
        "bad UTF-8": (b"file_name,text\na.png,\xff", named("line 2")),
        "a mark": (b"\xef\xbb\xbffile_name,text\na.png,x\nb.png,y", READY),
        "semicolons": ("file_name;text\na.png;x", named("semicolons")),
        "a column twice": ("file_name,text,text\na.png,x,y", named("line 1")),
        "an open quote": ('file_name,text\na.png,"x\nb.png,y', named("line 2")),
        "a header only": ("file_name,text\n", named("")),
        "out of the folder": ("file_name,text\n../../x.png,x\na.png,y", named("no such image")),
    },
    "x.jsonl": {
        "deep": (ROW + "\n" + DEEP, named("line 2")),
        "a list": ("[1]", named("line 1")),
        "NaN": ('{"file_name": "a.png", "text": NaN}', named("line 1")),
        "1e999": ('{"file_name": "a.png", "text": 1e999}', named("line 1")),
        "a name twice": ('{"file_name": "a.png", "file_name": "b.png"}', named("line 1")),
        "half a character": ('{"file_name": "a.png", "text": "\\ud800"}', named("line 1")),
        "false": (ROW + '\n{"file_name": "b.png", "text": false}', named("line 2")),
        "a long line": ("x" * 3_000_000, named("line 1")),
    },
    "x.json": {
        "deep": (DEEP, named("nested|JSON")),
        "a number": ("3", named("x.json")),
        "empty": ("", named("x.json")),
        "COCO without images": ('{"images": [], "annotations": []}', named("")),
        "COCO: captions of nobody": (
            json.dumps({"images": [], "annotations": [{"image_id": 3, "caption": "x"}]}),
            named("3"),
        ),
        "COCO: no captions": (
            json.dumps({"images": [{"id": 1}], "annotations": [{"image_id": 1}]}),
            named("caption"),
        ),
        "COCO: an id of a list": (
            json.dumps({"images": [{"id": 1}], "annotations": [{"image_id": [], "caption": ""}]}),
            named("image_id"),
        ),
        "Karpathy: numbers": (
            json.dumps({"images": [{"filename": 3, "sentences": 4, "split": []}]}),
            named(""),
        ),
        "Karpathy: out": (
            json.dumps(
                {"images": [{"filename": "p", "filepath": "../..", "sentences": [{"raw": "x"}]}]}
            ),
            named("p"),
        ),
    },
}
WRONG_TEXTS = [
    case(f"{file}: {name}", file, content, right)
    for file, cases in TEXTS.items()
    for name, (content, right) in cases.items()
]

# Folders of `save_to_disk`.

STATES = {
    "no JSON": ("{", named("state.json")),
    "a list": ("[]", named("state.json")),
    "a missing file": ('{"_data_files": [{"filename": "gone.arrow"}]}', named("gone")),
    "no files": ('{"_data_files": []}', named("")),
    "a number for a name": ('{"_data_files": [{"filename": 3}]}', named("")),
}
SAVED = [
    case(f"state.json: {name}", "set/state.json", content, right, "set")
    for name, (content, right) in STATES.items()
]

CASES = [*CUT, *WRONG_FILES, *LIES, *WRONG_COLUMNS, *BOMBS, *WRONG_TEXTS, *SAVED]


@pytest.mark.skipif(os.name != "posix", reason="needs links and pipes")
@pytest.mark.parametrize("case", in_ci(CASES, 10))
def test_hostile_tables(case, tmp_path_factory, tmp_path):
    check_case(case, tmp_path_factory.mktemp("world"), tmp_path)
