"""Small parquet and Arrow files of images and captions."""

import json
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
from pyarrow import parquet

from tests.helpers.images import picture

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])  # of Hugging Face's datasets


def image_table(root: Path, numbers: Sequence[int], paths: bool = True) -> pa.Table:
    """Make a table of pictures as datasets stores them; the pictures are in root/images, too."""
    files = [picture(root / "images" / f"{k:03d}.png", seed=k) for k in numbers]
    images = [{"bytes": f.read_bytes(), "path": f.name if paths else None} for f in files]
    texts = [f"picture number {k}" for k in numbers]
    write_texts(root / "images", numbers)
    return pa.table({"image": pa.array(images, IMAGE), "text": texts})


def write_texts(folder: Path, numbers: Sequence[int]) -> None:
    """Write the captions of the pictures into a table of the folder."""
    file = folder / "metadata.jsonl"
    with file.open("a") as stream:
        for k in numbers:
            row = {"file_name": f"{k:03d}.png", "text": f"picture number {k}"}
            stream.write(json.dumps(row) + "\n")


def write_parquet(path: Path, table: pa.Table, rows: int = 3) -> Path:
    """Write a parquet file with so many rows in a group."""
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(table, path, row_group_size=rows)
    return path


def write_arrow(path: Path, table: pa.Table, rows: int = 3) -> Path:
    """Write an Arrow stream, as `save_to_disk` of datasets does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with pa.ipc.new_stream(path, table.schema) as writer:
        writer.write_table(table, max_chunksize=rows)
    return path
