"""Hostile tables for check.py: a table beside two pictures, and what must be said of it."""

import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
from PIL import Image
from pyarrow import parquet

from tests.helpers.data.parquet_files import IMAGE
from tests.helpers.hostile import Check, HostileCase, Outcome, accepted, script

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
READY = accepted("")


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
