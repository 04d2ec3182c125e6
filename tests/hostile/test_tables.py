"""Hostile tables: parquet, Arrow, CSV, JSON and COCO, given to check.py."""

import base64
import io
import json
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet
from pyarrow.parquet import encryption

from dataset.tabular.footer import page_header, read_footer
from tests.helpers.data.parquet_files import IMAGE
from tests.helpers.hostile import (
    Check,
    HostileCase,
    Outcome,
    accepted,
    check_case,
    either,
    faults_of,
    in_ci,
    run_case,
    script,
)
from tests.hostile.fuzz import nth_input, outcome_of
from tests.hostile.targets.tables import TARGETS, parquets

Content = str | bytes | Callable[[Path], object]


def png(side: int = 16) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (side, 16), (200, 90, 9)).save(file, "PNG")
    return file.getvalue()


def named(pattern: str) -> Check:
    """Require that the problem is named: by a refusal, or in the report."""

    def check(outcome: Outcome, folder: Path) -> None:
        import re

        assert outcome.status in (1, 2), f"ended with {outcome.status}:\n{outcome.text[-3000:]}"
        assert re.search(pattern, outcome.text, re.DOTALL), f"no {pattern!r} in:\n{outcome.text}"

    return check


def case(
    name: str, file: str, content: Content, right: Check, data: str = "", **others: Content
) -> HostileCase:
    """Make a case: a table beside the pictures a.png and b.png."""

    def make(folder: Path) -> None:
        root = folder / "data"
        root.mkdir()
        for k, picture in enumerate(("a.png", "b.png")):
            (root / picture).write_bytes(png(16 + k))
        for place, each in {file: content, **others}.items():
            path = root / place
            path.parent.mkdir(parents=True, exist_ok=True)
            if callable(each):
                each(path)
            else:
                path.write_bytes(each.encode() if isinstance(each, str) else each)

    given = f"data/{data or file}"
    return HostileCase(
        name, make, script("check", given, "--batch-size", "1", "--no-near-duplicates"), right
    )


def as_parquet(columns: Mapping[str, Any], **options: Any) -> bytes:
    file = io.BytesIO()
    parquet.write_table(pa.table(dict(columns)), file, **options)
    return file.getvalue()


def as_arrow(columns: Mapping[str, Any], of_file: bool = False) -> bytes:
    file, table = io.BytesIO(), pa.table(dict(columns))
    with (pa.ipc.new_file if of_file else pa.ipc.new_stream)(file, table.schema) as writer:
        writer.write_table(table)
    return file.getvalue()


def images(*values: Any) -> Any:
    return pa.array([None if v is None else {"bytes": v, "path": None} for v in values], IMAGE)


GOOD = {"image": [png(), png(20)], "text": ["red", "blue"]}
NAMES = {"file_name": ["a.png", "b.png"], "text": ["red", "blue"]}
READY = accepted("")


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


def twice() -> pa.Table:
    return pa.Table.from_arrays([pa.array([png()]), pa.array([png()])], ["image", "image"])


def content_of(kind: str, columns: Any) -> bytes:
    table = twice() if columns is None else pa.table(columns)
    file = io.BytesIO()
    if kind == "parquet":
        parquet.write_table(table, file)
    else:
        with pa.ipc.new_stream(file, table.schema) as writer:
            writer.write_table(table)
    return file.getvalue()


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

# Pages whose headers lie.


def zigzag(number: int) -> bytes:
    """Write a number as Thrift's compact protocol has it."""
    number, content = (number << 1) ^ (number >> 63), bytearray()
    while number > 127:
        content.append(number & 127 | 128)
        number >>= 7
    return bytes([*content, number])


def with_header(path: Path, compression: str = "zstd", **lies: int) -> None:
    """Write a table of one page, with other numbers in the header of that page."""
    images = [png() + bytes(1000), png(20) + bytes(1000)]  # the header has the least and largest
    table = {"text": ["red", "blue"], "image": images}
    path.write_bytes(as_parquet(table, use_dictionary=False, compression=compression))
    chunk = read_footer(path).groups[0].chunks[1]
    content = bytearray(path.read_bytes())
    found, length = page_header(io.BytesIO(content), chunk.start)
    told = {"kind": 0, "size": found[2], "stored": found[3], "values": 2} | lies
    header = b"".join(b"\x15" + zigzag(told[name]) for name in ("kind", "size", "stored"))
    numbers = (told["values"], 0, 3, 3)  # plain; levels in runs
    header += b"\x2c" + b"".join(b"\x15" + zigzag(number) for number in numbers) + b"\0"
    room = length - len(header) - 4
    header += b"\xa8" + bytes([room & 127 | 128, room >> 7]) + bytes(room) + b"\0"
    assert len(header) == length
    content[chunk.start : chunk.start + length] = header
    path.write_bytes(content)


PAGES: dict[str, tuple[dict[str, Any], Check]] = {
    "the truth": ({}, READY),  # these pictures have bytes behind their end
    "2 GB unpacked": ({"size": 2**31 - 1}, named("x.parquet.*2,147,483,647")),
    "900 MB unpacked": ({"size": 900_000_000}, named("x.parquet|row 0")),
    "900 MB unpacked, snappy": ({"size": 900_000_000, "compression": "snappy"}, named("x|row 0")),
    "nothing unpacked": ({"size": 0}, named("x.parquet|row 0")),
    "less than nothing": ({"size": -1}, named("x.parquet|row 0")),
    "2 GB stored": ({"stored": 2**31 - 1}, named("x.parquet|row 0")),
    "2 GB stored, plain": ({"stored": 2**31 - 1, "compression": "none"}, named("x|row 0")),
    "nothing stored": ({"stored": 0}, named("x.parquet|row 0")),
    "less than nothing stored": ({"stored": -(2**31)}, named("x.parquet|row 0")),
    "2 billion values": ({"values": 2**31 - 1}, named("x.parquet|row 0")),
    "no values": ({"values": 0}, named("x.parquet|row 0")),
    "a negative number of values": ({"values": -5}, named("x.parquet|row 0")),
    "an unknown kind": ({"kind": 77}, named("x.parquet|row 0")),
    "a dictionary": ({"kind": 2}, named("x.parquet|row 0")),
}
WRONG_PAGES = [
    case(f"a page says {name}", "x.parquet", lambda p, lies=lies: with_header(p, **lies), right)
    for name, (lies, right) in PAGES.items()
]


# Layouts that writers may choose.


class PlainKeys(encryption.KmsClient):
    """A server of keys that hands them out as they are."""

    def __init__(self, config: object):
        super().__init__()

    def wrap_key(self, key_bytes: bytes, master_key_identifier: str) -> bytes:
        return base64.b64encode(key_bytes)

    def unwrap_key(self, wrapped_key: bytes, master_key_identifier: str) -> bytes:
        return base64.b64decode(wrapped_key)


def encrypt(path: Path, columns: Sequence[str], plaintext_footer: bool = True) -> None:
    keys = encryption.EncryptionConfiguration(
        footer_key="footer", column_keys={"own": list(columns)}, plaintext_footer=plaintext_footer
    )
    factory = encryption.CryptoFactory(PlainKeys)
    properties = factory.file_encryption_properties(encryption.KmsConnectionConfig(), keys)
    table = pa.table(GOOD)
    with parquet.ParquetWriter(path, table.schema, encryption_properties=properties) as writer:
        writer.write_table(table)


def write_groups(path: Path, *counts: int) -> None:
    """Write a table with so many of the two rows in each row group."""
    table = pa.table(GOOD)
    with parquet.ParquetWriter(path, table.schema) as writer:
        for count in counts:
            writer.write_table(table.slice(0, count))


def shared_images(kind: str) -> bytes:
    images = pa.array([png(), png(20), png()]).dictionary_encode()
    columns = {"image": images, "text": ["x", "y", "z"]}
    return as_parquet(columns) if kind == "parquet" else as_arrow(columns)


def with_dots(name: str, *more: str) -> bytes:
    """Write two good images under a name with a dot, and columns that look like parts of it."""
    others = {other: [b"no picture", b"none"] for other in more}
    values: Any = images(png(), png(20)) if more else [png(), png(20)]
    return as_parquet({name: values, "text": ["x", "y"], **others})


TWO = accepted(r"images +2\b")
LAYOUTS: list[HostileCase] = [
    case(
        "an encrypted column", "x.parquet", lambda p: encrypt(p, ["image"]), named("'image'.*crypt")
    ),
    case(
        "an encrypted caption", "x.parquet", lambda p: encrypt(p, ["text"]), named("'text'.*crypt")
    ),
    case(
        "a really encrypted footer",
        "x.parquet",
        lambda p: encrypt(p, ["image"], plaintext_footer=False),
        named("x.parquet.*encrypted"),
    ),
    case("row groups without rows", "x.parquet", lambda p: write_groups(p, 0, 2, 0, 0), TWO),
    case("only row groups without rows", "x.parquet", lambda p: write_groups(p, 0, 0), named("x")),
    case("no row groups", "x.parquet", lambda p: write_groups(p), named("x.parquet")),
    case("shared images in parquet", "x.parquet", shared_images("parquet"), accepted("")),
    case("shared images in Arrow", "x.arrow", shared_images("arrow"), accepted("")),
    case("a name with a dot", "x.parquet", with_dots("my.image"), TWO),
    case("a name like a field", "x.parquet", with_dots("image", "image.bytes"), TWO),
]


def deep(depth: int) -> Any:
    return {"a": deep(depth - 1)} if depth else 1


NESTED: dict[str, tuple[Any, Check]] = {
    "captions in lists of lists": (
        {"image": images(png()), "text": pa.array([[["x"]]])},
        named("no caption"),
    ),
    "images in lists": ({"image": [[png()]], "text": ["x"]}, named("image")),
    "images in structs of structs": (
        {"image": [{"bytes": {"bytes": png()}}], "text": ["x"]},
        named("image"),
    ),
    "a struct with a struct beside the bytes": (
        {"image": [{"bytes": png(), "more": {"a": {"b": [1]}}}], "text": ["x"]},
        accepted(""),
    ),
    "lists of structs beside": (
        {"image": images(png()), "text": ["x"], "more": [[{"a": [[1]], "b": {"c": "d"}}]]},
        accepted(""),
    ),
    "a map beside": (
        {
            "image": images(png()),
            "text": ["x"],
            "map": pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int64())),
        },
        accepted(""),
    ),
    "structs 60 deep": (
        {"image": images(png()), "text": ["x"], "deep": [deep(60)]},
        either("x"),
    ),
}
LAYOUTS += [
    case(
        f"{kind}: {name}",
        f"x.{kind}",
        lambda path, kind=kind, columns=columns: path.write_bytes(content_of(kind, columns)),
        right,
    )
    for kind in ("parquet", "arrow")
    for name, (columns, right) in NESTED.items()
]


def captions_twice(path: Path) -> None:
    columns = [pa.array([png()]), pa.array(["x"]), pa.array(["y"])]
    parquet.write_table(pa.Table.from_arrays(columns, ["image", "text", "text"]), path)


def many_rows(path: Path) -> None:
    """Write a footer that says that two rows are 2^40."""
    content = as_parquet({"image": [png(), png(20)]})
    count = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    footer = content[count:-8].replace(b"\x16" + zigzag(2), b"\x16" + zigzag(2**40))
    path.write_bytes(content[:count] + footer + len(footer).to_bytes(4, "little") + b"PAR1")


LAYOUTS += [
    case("a column of captions twice", "x.parquet", captions_twice, named("2 .*'text'")),
    case("2^40 rows", "x.parquet", many_rows, named("x.parquet")),
]

CASES = [*CUT, *WRONG_FILES, *LIES, *WRONG_COLUMNS, *BOMBS, *WRONG_TEXTS, *SAVED]
CASES += [*WRONG_PAGES, *LAYOUTS]


@pytest.mark.skipif(os.name != "posix", reason="needs links and pipes")
@pytest.mark.parametrize("case", in_ci(CASES, 10))
def test_hostile_tables(case, tmp_path_factory, tmp_path):
    check_case(case, tmp_path_factory.mktemp("world"), tmp_path)


# Footers. pyarrow ends the process where it does not expect an error, so all run in one of theirs.

ENDED = (1436, 1480, 2485, 2496, 4020, 5237, 6268, 7362, 8870, 10210, 10480, 10482, 10932)


def read_all(contents: Sequence[bytes]) -> list[str]:
    """Read files in this process; return what went wrong with each."""
    faults: list[str] = []
    for number, content in enumerate(contents):
        folder = Path(f"{number}")
        folder.mkdir()
        (folder / "a.parquet").write_bytes(content)
        fault, _ = outcome_of(TARGETS[0], folder / "a.parquet")
        faults += [f"{number}: {fault}"] if fault else []
    return faults


def damaged_footers(content: bytes, step: int) -> list[bytes]:
    """Return a file with every `step`-th byte of its footer changed, in several ways."""
    length = int.from_bytes(content[-8:-4], "little")
    return [
        content[:place] + bytes([byte]) + content[place + 1 :]
        for place in range(len(content) - 8 - length, len(content), step)
        for byte in (0, 255, content[place] ^ 1, content[place] + 16 & 255)
    ]


@pytest.mark.parametrize("step", [23, pytest.param(1, marks=pytest.mark.slow)])
def test_no_footer_ends_the_process(tmp_path, step):
    """The first are inputs of the fuzz that did, with the files that pyarrow 26 writes."""
    seeds = parquets()
    contents = [nth_input(TARGETS[0], seeds, 1, number) for number in ENDED]
    contents += damaged_footers(seeds[2 if step > 1 else 0], step)
    outcome = run_case(partial(read_all, contents), tmp_path, seconds=600)
    assert not faults_of(outcome), outcome.text[-2000:]
    assert outcome.value == []
