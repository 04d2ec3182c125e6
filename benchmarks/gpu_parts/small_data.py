"""A small data folder: squares of a few colors on white, with captions."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

COLORS = {"red": (220, 30, 30), "green": (30, 160, 60), "blue": (40, 60, 220), "black": (0, 0, 0)}


def make_squares(folder: Path, count: int, size: int = 32) -> Path:
    """Write so many pictures with metadata.jsonl."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    lines = []
    for k in range(count):
        name, color = list(COLORS.items())[k % len(COLORS)]
        pixels = np.full((size, size, 3), 255, np.uint8)
        top, left = random.integers(0, size // 2, 2)
        side = random.integers(size // 4, size // 2)
        pixels[top : top + side, left : left + side] = color
        Image.fromarray(pixels).save(folder / f"{k:04d}.png")
        lines.append(json.dumps({"file_name": f"{k:04d}.png", "text": f"a {name} square, {k}"}))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder
