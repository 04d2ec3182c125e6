"""Hostile parquet files: pages and footers that lie, encryption, layouts that are allowed."""

import base64
import io
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet
from pyarrow.parquet import encryption

from dataset.tabular.footer import page_header, read_footer
from tests.helpers.data.table_cases import (
    GOOD,
    READY,
    as_arrow,
    as_parquet,
    case,
    content_of,
    images,
    named,
    png,
)
from tests.helpers.hostile import (
    Check,
    HostileCase,
    accepted,
    check_case,
    either,
    faults_of,
    in_ci,
    run_case,
)
from tests.hostile.fuzz import nth_input, outcome_of
from tests.hostile.targets.tables import TARGETS, parquets

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

CASES = [*WRONG_PAGES, *LAYOUTS]


@pytest.mark.skipif(os.name != "posix", reason="limits of time and memory need it")
@pytest.mark.parametrize("case", in_ci(CASES, 6))
def test_hostile_parquet_files(case, tmp_path_factory, tmp_path):
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
