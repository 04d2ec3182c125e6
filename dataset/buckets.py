"""Shapes other than the square, so that wide and tall images lose less.

All have about the same area. An image takes the shape whose aspect ratio is the nearest to its own,
and is then cropped and resized to it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Shaped

from dataset.images.transform import ImageTransform
from dataset.table import Pairs

Shape = tuple[int, int]  # width, height


def shapes_up_to(max_aspect: float, size: int, multiple: int) -> list[Shape]:
    """From the tallest to the widest; none has more pixels than size x size.

    Args:
        max_aspect: of the longer side to the shorter one.
        multiple: of which all sides must be.
    """
    shapes = {(size, size)}
    for long in range(size, int(size * math.sqrt(max_aspect)) + multiple, multiple):
        short = size * size // long // multiple * multiple
        if short and long <= max_aspect * short:
            shapes |= {(long, short), (short, long)}
    return sorted(shapes, key=lambda shape: (shape[0] / shape[1], shape))


@dataclass(frozen=True)
class Buckets:
    """Shapes in the order of their aspect ratios."""

    shapes: Sequence[Shape]

    def of(self, pairs: Pairs) -> Shaped[np.ndarray, " pairs"]:
        """For each pair the place of its shape."""
        ratios = np.log([width / height for width, height in self.shapes])
        edges = (ratios[1:] + ratios[:-1]) / 2
        own = np.log(pairs.column("width") / pairs.column("height"))
        return np.searchsorted(edges, own).astype(np.uint8)

    def transforms(self, transform: ImageTransform) -> list[ImageTransform]:
        return [replace(transform, sides=shape) for shape in self.shapes]


def choose_buckets(pairs: Pairs, shapes: Sequence[Shape], batch_size: int) -> Buckets:
    """Those shapes that have a whole batch of images; the others' images go to the next nearest."""
    buckets = Buckets(list(shapes))
    while len(buckets.shapes) > 1:
        counts = np.bincount(buckets.of(pairs), minlength=len(buckets.shapes))
        if counts.min() >= batch_size:
            break
        rarest = int(counts.argmin())
        buckets = Buckets([shape for k, shape in enumerate(buckets.shapes) if k != rarest])
    return buckets
