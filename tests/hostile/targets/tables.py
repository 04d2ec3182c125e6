"""Tables of pictures: parquet, Arrow, CSV, JSON, and the folders of `save_to_disk`.

Beside each lie the two pictures that tables of names name. All rows are read, and all pictures.
"""

import functools
import io
import json
import random
import shutil
import struct
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
from PIL import Image
from pyarrow import parquet

from dataset.options import ReadOptions
from dataset.parallel import no_progress
from dataset.tabular.discover import plan_tables
from dataset.tabular.group_cache import forget
from foundation.errors import UserError
from tests.helpers.data.parquet_files import IMAGE
from tests.hostile.fuzz import FuzzTarget
from tests.hostile.mutation import NUMBERS, mutated

NAMES = ("a.png", "b.png")


@functools.cache
def pictures() -> Path:
    """Return a folder of the pictures that tables name, made once per process."""
    folder = Path(tempfile.mkdtemp())
    for k, name in enumerate(NAMES):
        Image.new("RGB", (8 + k, 8), (200, 90 * k, 9)).save(folder / name)
    return folder


def tables() -> list[pa.Table]:
    """Return tables of most of the types that columns have."""
    contents = [(pictures() / name).read_bytes() for name in NAMES]
    images = pa.array(
        [{"bytes": c, "path": n} for c, n in zip(contents, NAMES, strict=True)], IMAGE
    )
    empty = pa.array([{"bytes": None, "path": "a.png"}, None], IMAGE)
    notes = {b"huggingface": json.dumps({"info": {"features": {"label": CLASSES}}}).encode()}
    made: list[Any] = [
        {"image": images, "text": ["red", None]},
        {"image": empty, "text": ["red", "blue"]},
        {"image": contents, "caption": pa.array([["red", "blue"], []], pa.list_(pa.string()))},
        {"file_name": list(NAMES), "text": pa.array(["red", "red"]).dictionary_encode()},
        {
            "image": pa.array(contents, pa.large_binary()),
            "text": pa.array(["r", "b"], pa.large_string()),
        },
        {"image": images, "label": [1, 0]},
    ]
    return [pa.table(table).replace_schema_metadata(notes) for table in made]


CLASSES = {"_type": "ClassLabel", "names": ["red_heart", "blue"]}
COMPRESSIONS = ("none", "snappy", "zstd", "gzip")


def parquets() -> Sequence[bytes]:
    files: list[bytes] = []
    for k, table in enumerate(tables()):
        sink = io.BytesIO()
        compression = COMPRESSIONS[k % len(COMPRESSIONS)]
        parquet.write_table(table, sink, row_group_size=1 + k % 2, compression=compression)
        files.append(sink.getvalue())
    return files


def arrows(of_files: bool) -> Sequence[bytes]:
    """Return Arrow files, or streams; views are a type that only these have."""
    views = {
        "image": pa.array([(pictures() / n).read_bytes() for n in NAMES], pa.binary()).cast(
            pa.binary_view()
        ),
        "text": pa.array(["red", "a caption that is longer than twelve"], pa.string_view()),
    }
    files: list[bytes] = []
    for table in [*tables(), pa.table(views)]:
        sink = io.BytesIO()
        new = pa.ipc.new_file if of_files else pa.ipc.new_stream
        with new(sink, table.schema) as writer:
            writer.write_table(table, max_chunksize=1)
        files.append(sink.getvalue())
    return files


def mutate_columnar(rng: random.Random, seeds: Sequence[bytes]) -> bytes:
    """Change one of the numbers behind which the layout is, or anything."""
    if rng.random() < 0.6:
        return mutated(rng, seeds)
    content = bytearray(rng.choice(seeds))
    low = 0 if rng.random() < 0.5 else max(len(content) - 600, 0)  # the footer
    for _ in range(rng.choice((1, 1, 2, 4))):
        start, small = rng.randrange(low, len(content) - 8), rng.random() < 0.6
        number = rng.randrange(64) if small else rng.choice(NUMBERS)
        size = rng.choice((1, 1, 4, 8))
        struct.pack_into("<Q", number_bytes := bytearray(8), 0, number % 256**size)
        content[start : start + size] = number_bytes[:size]
    return bytes(content)


ROWS = [{"file_name": name, "text": "red"} for name in NAMES]
LISTS = [{"file_name": "./a.png", "text": ["red", "blue"], "more": {"x": [1]}}, ROWS[1]]
COCO = {
    "images": [{"id": k, "file_name": name} for k, name in enumerate(NAMES)],
    "annotations": [{"image_id": k, "caption": f"picture {k}"} for k in (0, 1, 1)],
}
KARPATHY = {
    "images": [
        {"filename": name, "split": "train", "sentences": [{"raw": "red"}, {"raw": "blue"}]}
        for name in NAMES
    ]
}
DOCUMENTS = [ROWS, LISTS, {"a.png": "red", "b.png": ["x", "y"]}, COCO, KARPATHY]


def documents() -> Sequence[bytes]:
    return [json.dumps(document).encode() for document in DOCUMENTS]


def lines() -> Sequence[bytes]:
    rows = [ROWS, LISTS]
    return ["\n".join(json.dumps(row) for row in table).encode() for table in rows]


def csvs() -> Sequence[bytes]:
    return [
        b'image,text\na.png,"red, and ""round"""\nb.png,two\n',
        b"\xef\xbb\xbffile_name,caption\r\na.png,apple\r\n.\\b.png,\r\n",
    ]


def tsvs() -> Sequence[bytes]:
    return [content.replace(b",", b"\t") for content in csvs()]


def saved() -> Sequence[bytes]:
    """Return what `save_to_disk` writes beside the Arrow file."""
    return [b'{"_data_files": [{"filename": "data.arrow"}], "_split": "train"}']


def read(file: Path) -> object:
    """Read all rows and all pictures; each name has a place, and each row is counted."""
    for name in NAMES:
        shutil.copyfile(pictures() / name, file.parent / name)
    return read_table(file)


def read_folder(file: Path) -> object:
    (file.parent / "data.arrow").write_bytes(arrows(of_files=False)[0])
    return read_table(file.parent)


def read_table(data: Path) -> object:
    forget()  # the file of the same name before this one
    plan = plan_tables(data, ReadOptions(), no_progress)
    assert plan is not None
    catalog = plan.read()
    for name, captions in catalog.captions.items():
        assert captions and all(caption.encode() is not None for caption in captions)
        with suppress(UserError, OSError):
            catalog.locate(name).read_bytes()
    return [str(entry) for entry in catalog.unusable]


TARGETS = [
    FuzzTarget("a.parquet", parquets, read, mutate_columnar),
    FuzzTarget("file.arrow", functools.partial(arrows, True), read, mutate_columnar),
    FuzzTarget("stream.arrow", functools.partial(arrows, False), read, mutate_columnar),
    FuzzTarget("a.json", documents, read),
    FuzzTarget("a.jsonl", lines, read),
    FuzzTarget("a.csv", csvs, read),
    FuzzTarget("a.tsv", tsvs, read),
    FuzzTarget("state.json", saved, read_folder),
]
