"""Tables of captions and caption files, each beside two images that exist only by name."""

from collections.abc import Sequence
from pathlib import Path

from dataset.captions.files import FileList
from dataset.captions.rules import find_captions, near_misses
from tests.hostile.fuzz import FuzzTarget

JSONL = [
    b'{"file_name": "a.png", "text": "red"}\n{"file_name": "b/c.png", "caption": ["x", "y"]}\n',
    '{"file_name": "./b\\\\c.png", "text": "\\u00e4pfel 猫"}\r\n\n'.encode(),
]
CSV = [
    b'file_name,text\na.png,"red, and ""round"""\nb/c.png,two\n',
    b"\xef\xbb\xbffile_name,caption\r\na.png,apple\r\n",
]
JSON = [
    b'{"a.png": "red apple", "b/c.png": ["x", "y"]}',
    b'[{"file_name": "a.png", "text": null}, {"file_name": "b/c.png", "caption": "x"}]',
]
SIDECAR = [b"red apple\nround apple\r\n", "\ufeffäpfel 猫\n".encode()]


def jsonl() -> Sequence[bytes]:
    return JSONL


def csv() -> Sequence[bytes]:
    return CSV


def json() -> Sequence[bytes]:
    return JSON


def sidecar() -> Sequence[bytes]:
    return SIDECAR


def read(file: Path) -> object:
    names = {name: name for name in ("a.png", "b/c.png")}
    files = FileList(file.parent, names, {file.name: file.name})
    found = find_captions(files)
    for captions in found.captions.values():
        for caption in captions:
            assert caption == caption.strip() != "" and caption.encode()
    return [str(entry) for entry in found.unusable], near_misses(files, found)


TARGETS = [
    FuzzTarget("metadata.jsonl", jsonl, read),
    FuzzTarget("metadata.csv", csv, read),
    FuzzTarget("captions.json", json, read),
    FuzzTarget("a.txt", sidecar, read),
]
