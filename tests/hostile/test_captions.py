"""Hostile data folders: caption files, tables, names and links, given to check.py."""

import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from PIL import Image

from tests.helpers.hostile import (
    Check,
    HostileCase,
    Outcome,
    accepted,
    check_case,
    in_ci,
    refused,
    script,
)

CHECK = script("check", "data", "--batch-size", "1", "--no-near-duplicates")
Content = str | bytes | Callable[[Path], object]


def problem(pattern: str) -> Check:
    """Require a report that names the problem, and status 1."""

    def check(outcome: Outcome, folder: Path) -> None:
        assert outcome.status == 1, f"ended with {outcome.status}:\n{outcome.text[-3000:]}"
        assert "PROBLEM" in outcome.text and "ready for" not in outcome.text
        assert re.search(pattern, outcome.text, re.DOTALL), f"no {pattern!r} in:\n{outcome.text}"

    return check


def folder_of(files: Mapping[str, Content], images: tuple[str, ...]) -> Callable[[Path], None]:
    """Return a function that makes a data folder of these files and images."""

    def make(folder: Path) -> None:
        root = folder / "data"
        root.mkdir()
        for k, name in enumerate(images):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (16 + k, 16), (40 * k % 256, 90, 9)).save(root / name, "PNG")
        for name, content in files.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if callable(content):
                content(path)
            else:
                path.write_bytes(content.encode() if isinstance(content, str) else content)

    return make


def case(name: str, files: Mapping[str, Content], right: Check, *images: str) -> HostileCase:
    return HostileCase(name, folder_of(files, images or ("a.png",)), CHECK, right)


def link_to(target: str) -> Callable[[Path], object]:
    return lambda path: path.symlink_to(target)


def sparse(size: int) -> Callable[[Path], object]:
    def make(path: Path) -> None:
        with path.open("wb") as file:
            file.truncate(size)

    return make


def row(text: object, image: object = "a.png", **more: object) -> str:
    return json.dumps({"file_name": image, "text": text, **more})


# Values that are no caption, in every table.

VALUES = {
    "false": False,
    "true": True,
    "zero": 0,
    "a number": 3.5,
    "an object": {"en": "x"},
    "a list of null": [None],
    "a list of lists": [["x"]],
    "a list of numbers": [1, 2],
    "half a character": "\ud800",
    "a zero character": "a\0b",
    "a million characters": "x" * 1_000_000,
    "an object of many": {str(k): k for k in range(5000)},
    "a list of many": list(range(20_000)),
}
WRONG_VALUES = [
    case(f"{table}: {name}", {table: make(value)}, refused(pattern))
    for table, make, pattern in (
        ("metadata.jsonl", row, r"metadata\.jsonl line 1"),
        ("captions.json", lambda v: json.dumps({"a.png": v}), r"captions\.json"),
    )
    for name, value in VALUES.items()
]

# Whole files that are no table.

BLOBS: dict[str, Content] = {
    "a pipe": lambda path: os.mkfifo(path),
    "a link to zeros": link_to("/dev/zero"),
    "a link to random": link_to("/dev/urandom"),
    "a link to itself": lambda path: path.symlink_to(path.name),
    "a broken link": link_to("nowhere"),
    "zero bytes": bytes(100),
    "random bytes": bytes(range(256)) * 10,
    "UTF-16": row("x").encode("utf-16"),
    "UTF-32": row("x").encode("utf-32"),
    "Windows-1252": "file_name,text\na.png,äpfel".encode("cp1252"),
    "nested": "[" * 100_000,
    "a large sparse file": sparse(10**11),
    "an image": b"\x89PNG\r\n\x1a\n" + bytes(100),
    "a scalar": "3",
    "a string": '"a.png"',
    "an open string": '{"file_name": "a.png',
    "a huge number": '{"file_name": "a.png", "text": 1' + "0" * 10_000 + "}",
    "not a number": '{"file_name": "a.png", "text": NaN}',
    "fields twice": '{"file_name": "a.png", "text": "x", "text": "y"}',
    "many words": "word " * 300_000,
}
WRONG_FILES = [
    case(f"{table} is {name}", {table: content}, refused(table.replace(".", r"\.")))
    for table in ("metadata.jsonl", "metadata.csv", "captions.json")
    for name, content in BLOBS.items()
]
SIDECAR_BLOBS = {
    name: BLOBS[name]
    for name in (
        *("a pipe", "a link to zeros", "a link to random", "a link to itself", "a broken link"),
        *("zero bytes", "random bytes", "UTF-16", "UTF-32", "Windows-1252", "a large sparse file"),
        "an image",
    )
}
WRONG_SIDECARS = [
    case(f"a caption file is {name}", {"a.txt": content}, problem(r"Left out.*a\.txt"))
    for name, content in SIDECAR_BLOBS.items()
]

# CSV.

CSV_TABLES = {
    "an open quote": ('file_name,text\na.png,"open\nb.png,x\n', "line 2"),
    "an open quote of megabytes": ('file_name,text\na.png,"open\n' + "x,y\n" * 400_000, "line 2"),
    "text after a quote": ('file_name,text\na.png,"x"y\n', "line 2"),
    "semicolons": ("file_name;text\na.png;x\n", "semicolons"),
    "tabs": ("file_name\ttext\na.png\tx\n", "tabs"),
    "bars": ("file_name|text\na.png|x\n", "bars"),
    "a cell too many": ("file_name,text\na.png,x,y\n", "line 2"),
    "a cell too few": ("file_name,text\na.png\n", "line 2"),
    "no header": ("a.png,x\n", "line 1"),
    "a column twice": ("file_name,text,text\na.png,x,y\n", "line 1"),
    "a million columns": ("file_name," + "c," * 400_000 + "text\n", "columns|line 1"),
    "nothing": ("", "empty"),
    "line breaks only": ("\n\n\n", "empty"),
    "escape sequences": ("\x1b[31m,\x07\n", r"line 1"),
}
WRONG_CSV = [
    case(f"CSV with {name}", {"metadata.csv": text}, refused(rf"metadata\.csv.*({pattern})"))
    for name, (text, pattern) in CSV_TABLES.items()
]

# Names and places.

PLACES = [
    case("a row leads out", {"metadata.jsonl": row("x", "../a.png")}, problem("no such image")),
    case("an absolute path", {"metadata.jsonl": row("x", "/etc/passwd")}, problem("passwd")),
    case("a drive", {"metadata.jsonl": row("x", "C:\\data\\a.png")}, problem("no such image")),
    case("a long name", {"metadata.jsonl": row("x", "n" * 500_000)}, problem("no such image")),
    case("an empty name", {"metadata.jsonl": row("x", "")}, problem("no such image")),
    case("a name with control", {"metadata.jsonl": row("x", "\x1b[2J")}, problem(r"\\x1b")),
    case("a name is a number", {"metadata.jsonl": row("x", 3)}, refused("line 1.*3")),
    case("a name is half", {"metadata.jsonl": row("x", "\udcff")}, refused("line 1")),
    case("no fields", {"metadata.jsonl": "{}"}, refused("file_name")),
    case(
        "many fields",
        {"metadata.jsonl": json.dumps({f"field {k}": k for k in range(20_000)})},
        refused("20000"),
    ),
    case(
        "rows of Karpathy",
        {"captions.json": json.dumps({"images": [{"filename": "a.png"}] * 5000})},
        refused(r"captions\.json"),
    ),
    case("both forms", {}, accepted("Unicode"), "\u00e4pfel.png", "a\u0308pfel.png"),
    case("bad bytes", {os.fsdecode(b"\xff.png"): b"x"}, problem("UTF-8"), "red apple.png"),
    case("a pipe for an image", {"b.png": BLOBS["a pipe"]}, problem("pipe"), "red apple.png"),
    case("a device", {"b.png": link_to("/dev/zero")}, problem("device"), "red apple.png"),
    case("a loop", {"b.png": link_to("b.png")}, problem("itself"), "red apple.png"),
    case("a loop of folders", {"sub/up": link_to("..")}, accepted("ready"), "red apple.png"),
    case("control in a name", {}, accepted(r"\\x1b"), "red \x1b[31m apple.png"),
    case("a line break in a name", {}, accepted(r"red\\napple"), "red\napple.png"),
    case("control in a caption", {"a.txt": "red \x1b]0;title\x07 apple"}, accepted(r"\\x1b")),
    case("right to left", {"a.txt": "red \u202e apple"}, accepted(r"\\u202e")),
    case("a caption of a megabyte", {"a.txt": "x" * 1_000_000}, problem(r"a\.txt")),
    case("many lines", {"a.txt": "x y\n" * 100_000}, accepted("ready")),
    case("lines of old Macs", {"metadata.jsonl": row("x") + "\r" + row("y")}, accepted("ready")),
    case("only white space", {"a.txt": " \n\t\n"}, problem("no caption")),
    case("a hidden table", {".metadata.jsonl": "x"}, accepted("ready"), "red apple.png"),
    case("folders 100 deep", {}, accepted("ready"), "d/" * 100 + "red apple.png"),
]

# Files that may hold captions: nothing is guessed.

LIKE = ["b.txt", "c/a.txt", "x.tsv", "x.parquet", "meta.json", "x.yaml", "x.xlsx", "x.arrow"]
UNMATCHED = [
    case(f"{name} lies there", {name: "x"}, refused(name), "red apple.png") for name in LIKE
]
NEAR = [
    case(f"{name} for a table", {name: "x"}, refused(name), "red apple.png")
    for name in ("metadata.json", "Metadata.CSV", "metadatas.jsonl", "caption.json")
]
SPLITS = [
    case("two splits", {}, refused("train/.*test/.*--split train"), "train/x y.png", "test/b.png"),
    case("three splits", {}, refused("val/"), "train/x y.png", "val/b.png", "Test/c.png"),
]

CASES = [
    *(*WRONG_VALUES, *WRONG_FILES, *WRONG_SIDECARS, *WRONG_CSV),
    *(*PLACES, *UNMATCHED, *NEAR, *SPLITS),
]


@pytest.mark.skipif(os.name != "posix", reason="needs links and pipes")
@pytest.mark.parametrize("case", in_ci(CASES, 16))
def test_hostile_data_folders(case, tmp_path_factory, tmp_path):
    check_case(case, tmp_path_factory.mktemp("world"), tmp_path)
