"""Small image files and data folders."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from dataset.table import ImageFacts, Table, TableBuilder


def picture(path: Path, seed: int = 0, size: tuple[int, int] = (8, 8)) -> Path:
    """Write noise as PNG or JPEG, by the path's extension; each seed gives another picture."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    image_format = "JPEG" if path.suffix.lower() in (".jpg", ".jpeg") else "PNG"
    Image.fromarray(values).save(path, image_format)
    return path


def truncated(path: Path) -> Path:
    """Write a JPEG whose end is missing."""
    picture(path, size=(64, 64))
    path.write_bytes(path.read_bytes()[:-500])
    return path


def captioned(root: Path, count: int) -> Path:
    """Write a valid data folder of `count` different pictures with metadata.jsonl."""
    rows = []
    for k in range(count):
        picture(root / f"{k:03d}.png", seed=k)
        rows.append({"file_name": f"{k:03d}.png", "text": f"picture number {k}"})
    write_metadata(root, rows)
    return root


def write_metadata(root: Path, rows: list[dict], file: str = "metadata.jsonl") -> None:
    """Write one JSON object per line."""
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    (root / file).write_text("".join(lines), encoding="utf-8")


def table(
    captions: Mapping[str, Sequence[str]],
    root: Path = Path("/data"),
    size: tuple[int, int] = (8, 8),
) -> Table:
    """Make a table of images that need not exist; the sha256 of row k is the number k."""
    builder = TableBuilder()
    for k, (name, texts) in enumerate(captions.items()):
        facts = ImageFacts(
            size=1,
            mtime_ns=1,
            offset=0,
            shard=-1,
            width=size[0],
            height=size[1],
            sha256=k.to_bytes(32),
        )
        builder.add(name, texts, facts, "RGB")
    return builder.build(root)
