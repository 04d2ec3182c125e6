"""Small picture files for the tests of data folders."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from dataset.table import Rows, Table


def picture(path: Path, seed: int = 0, size: tuple[int, int] = (8, 8)) -> Path:
    """Noise, as PNG or JPEG by the path's extension; another seed gives another picture."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    image_format = "JPEG" if path.suffix.lower() in (".jpg", ".jpeg") else "PNG"
    Image.fromarray(values).save(path, image_format)
    return path


def truncated(path: Path) -> Path:
    """A JPEG that ends too early."""
    picture(path, size=(64, 64))
    path.write_bytes(path.read_bytes()[:-500])
    return path


def captioned(root: Path, count: int) -> Path:
    """A good data folder of `count` different pictures with metadata.jsonl."""
    rows = []
    for k in range(count):
        picture(root / f"{k:03d}.png", seed=k)
        rows.append({"file_name": f"{k:03d}.png", "text": f"picture number {k}"})
    write_metadata(root, rows)
    return root


def write_metadata(root: Path, rows: list[dict], file: str = "metadata.jsonl") -> None:
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    (root / file).write_text("".join(lines), encoding="utf-8")


def table(
    captions: Mapping[str, Sequence[str]],
    root: Path = Path("/data"),
    size: tuple[int, int] = (8, 8),
) -> Table:
    """Of images that need not exist; row k has the hash k."""
    rows = Rows()
    facts = {"size": 1, "mtime_ns": 1, "offset": 0, "shard": -1}
    facts |= {"width": size[0], "height": size[1]}
    for k, (name, texts) in enumerate(captions.items()):
        rows.add(name, texts, facts | {"sha256": k.to_bytes(32)}, "RGB")
    return rows.table(root)
