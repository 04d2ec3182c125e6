"""A small captioned data folder of colored shapes on white, and a classifier of such shapes."""

import json
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

COLORS = {"red": (220, 30, 30), "green": (30, 160, 60), "blue": (40, 60, 220)}
SHAPES = ("circle", "square", "triangle")
OVERSAMPLING = 4  # shapes are drawn larger and then shrunk, for smooth edges


def draw_shape(color: str, shape: str, size: int, random: np.random.Generator) -> Image.Image:
    """Draw one shape of random size at a random position."""
    full = size * OVERSAMPLING
    image = Image.new("RGB", (full, full), "white")
    side = full * random.uniform(0.5, 0.7)
    left, top = random.uniform(0.1, 0.9, 2) * (full - side)
    box = (left, top, left + side, top + side)
    pen = ImageDraw.Draw(image)
    if shape == "circle":
        pen.ellipse(box, fill=COLORS[color])
    elif shape == "square":
        pen.rectangle(box, fill=COLORS[color])
    else:
        corners = [(left + side / 2, top), (left + side, top + side), (left, top + side)]
        pen.polygon(corners, fill=COLORS[color])
    return image.resize((size, size), Image.Resampling.LANCZOS)


def make_shapes(folder: Path, count: int, size: int = 32) -> Path:
    """Write `count` images with metadata.jsonl; every color and shape occurs equally often."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    kinds = [(color, shape) for color in COLORS for shape in SHAPES]
    with (folder / "metadata.jsonl").open("w") as metadata:
        for k in range(count):
            color, shape = kinds[k % len(kinds)]
            draw_shape(color, shape, size, random).save(folder / f"{k:04d}.png")
            line = {"file_name": f"{k:04d}.png", "text": f"a {color} {shape}"}
            metadata.write(json.dumps(line) + "\n")
    return folder


def name_shape(image: Image.Image) -> tuple[str, str]:
    """Classify an image as (color, shape), by its mean color and the filled fraction of its box."""
    pixels = np.asarray(image.convert("RGB"), dtype=float)
    inside = pixels.min(axis=2) < 140
    if not inside.any():
        return "none", "none"
    mean = pixels[inside].mean(axis=0)
    color = min(COLORS, key=lambda name: np.square(mean - COLORS[name]).sum())
    rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
    box = (rows[-1] - rows[0] + 1) * (columns[-1] - columns[0] + 1)
    filled = inside.sum() / box
    fractions = {"square": 1.0, "circle": np.pi / 4, "triangle": 0.5}
    return color, min(SHAPES, key=lambda name: abs(filled - fractions[name]))
