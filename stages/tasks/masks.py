"""Masks as users draw them: strokes of a brush, boxes, a side of the picture, or all of it.

The mix follows the training of Stable Diffusion's inpainting model, of which a quarter of the masks
covers the whole image (model card of stable-diffusion-inpainting), and the strokes and boxes of
LaMa (Suvorov et al. 2021, arXiv:2109.07161).
"""

import math

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, ImageDraw
from torch import Tensor

WHOLE = 0.25  # share of masks that cover the whole image
STROKES, BOXES = 0.5, 0.25  # shares of the others; what is left covers one side
SHAPES = 4  # strokes or boxes of a mask, at most
CORNERS = 8  # of a stroke, at most
BRUSH = (0.08, 0.25)  # width of a stroke, by the side of the image
TURN = math.pi / 2  # by which a stroke turns at a corner, at most
STRIDE = (0.1, 0.35)  # between two corners, by the side of the image
BOX = (0.15, 0.6)  # sides of a box, by the side of the image
SIDE = (0.25, 0.75)  # how much of the image a covered side takes


class Random:
    """Numbers from a generator of torch, in the forms that shapes need."""

    def __init__(self, generator: torch.Generator):
        self.generator = generator

    def between(self, low: float, high: float) -> float:
        share = torch.rand((), generator=self.generator, dtype=torch.float64).item()
        return low + (high - low) * share

    def count(self, most: int) -> int:
        """Return a whole number from 1 to `most`."""
        return 1 + min(int(self.between(0, most)), most - 1)


def draw_mask(
    width: int, height: int, generator: torch.Generator, *, whole: float = WHOLE, cell: int = 1
) -> UInt8[Tensor, "1 height width"]:
    """Draw a mask: 1 where the image is to be drawn anew, 0 where it is kept.

    Args:
        whole: share of masks that cover the whole image.
        cell: pixels of a latent pixel, in each direction. No shape is smaller, so that the mask
            covers a corner of a cell, which is all that the network sees of it.
    """
    random = Random(generator)
    if random.between(0, 1) < whole:
        return torch.ones(1, height, width, dtype=torch.uint8)
    kind = random.between(0, 1)
    mask = Image.new("L", (width, height))
    draw = ImageDraw.Draw(mask)
    if kind < STROKES:
        for _ in range(random.count(SHAPES)):
            draw_stroke(draw, width, height, random, cell)
    elif kind < STROKES + BOXES:
        for _ in range(random.count(SHAPES)):
            draw_box(draw, width, height, random, cell)
    else:
        draw_side(draw, width, height, random, cell)
    return torch.from_numpy(np.array(mask))[None]


def draw_stroke(
    draw: ImageDraw.ImageDraw, width: int, height: int, random: Random, cell: int
) -> None:
    """Draw a stroke of a round brush along straight pieces."""
    side = min(width, height)
    brush = max(random.between(*BRUSH) * side, 1.5 * cell)  # a disk so wide covers a corner
    x, y = random.between(0, width - 1), random.between(0, height - 1)
    angle = random.between(0, 2 * math.pi)
    points = [(x, y)]
    for _ in range(random.count(CORNERS)):
        stride = random.between(*STRIDE) * side
        x = min(max(x + stride * math.cos(angle), 0), width - 1)
        y = min(max(y + stride * math.sin(angle), 0), height - 1)
        points.append((x, y))
        angle += random.between(-TURN, TURN)
    draw.line(points, fill=1, width=round(brush))
    radius = brush / 2
    for x, y in points:
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=1)


def draw_box(draw: ImageDraw.ImageDraw, width: int, height: int, random: Random, cell: int) -> None:
    """Draw a box."""
    sides = [max(round(random.between(*BOX) * side), cell) for side in (width, height)]
    left = int(random.between(0, width - sides[0] + 1))
    top = int(random.between(0, height - sides[1] + 1))
    draw.rectangle((left, top, left + sides[0] - 1, top + sides[1] - 1), fill=1)


def draw_side(
    draw: ImageDraw.ImageDraw, width: int, height: int, random: Random, cell: int
) -> None:
    """Cover the left, right, upper or lower side, as for a picture that is continued."""
    side = int(random.between(0, 4)) % 4
    long = width if side < 2 else height
    covered = max(round(random.between(*SIDE) * long), cell)
    boxes = (
        (0, 0, covered - 1, height - 1),
        (width - covered, 0, width - 1, height - 1),
        (0, 0, width - 1, covered - 1),
        (0, height - covered, width - 1, height - 1),
    )
    draw.rectangle(boxes[side], fill=1)
