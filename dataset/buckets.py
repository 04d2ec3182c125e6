"""Aspect-ratio buckets: shapes other than the square, so that wide and tall images lose less.

All shapes have about the same area. An image belongs to the bucket whose aspect ratio is nearest to
its own, and is cropped and resized to that shape.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Int32, Int64, UInt8

from dataset.images.transform import ImageTransform
from dataset.order import bucket_sizes
from dataset.table import PairList
from foundation.errors import UserError

Shape = tuple[int, int]  # width, height
MOST_SHAPES = 256  # the number of an image's shape has 8 bits


def bucket_shapes(max_aspect: float, size: int, multiple: int) -> list[Shape]:
    """List the shapes from the tallest to the widest; none has more pixels than size x size.

    Args:
        max_aspect: the largest ratio of the longer side to the shorter one, 1 or more.
        size: side of the square, a multiple of `multiple`.
        multiple: all sides are multiples of it.

    Raises:
        UserError: there would be more than MOST_SHAPES.
    """
    shapes = {(size, size)}
    longest = min(size * math.sqrt(max_aspect) + multiple, size * size // multiple + 1)
    for long in range(size, math.ceil(longest), multiple):
        short = size * size // long // multiple * multiple
        if short and long <= max_aspect * short:
            shapes |= {(long, short), (short, long)}
        if len(shapes) > MOST_SHAPES:
            raise UserError(
                f"max_aspect {max_aspect:g} gives more than {MOST_SHAPES} shapes, up to {long}x"
                f"{short}, and each needs a batch of images. Use a smaller one, such as 2."
            )
    return sorted(shapes, key=lambda shape: (shape[0] / shape[1], shape))


@dataclass(frozen=True)
class Buckets:
    """Shapes in the order of their aspect ratios; a bucket is named by its number."""

    shapes: Sequence[Shape]

    def assign(self, pairs: PairList) -> UInt8[np.ndarray, " pairs"]:
        """Return the bucket of each pair's image."""
        log_ratios = np.log([width / height for width, height in self.shapes])
        edges = (log_ratios[1:] + log_ratios[:-1]) / 2

        def nearest(
            widths: Int32[np.ndarray, " n"], heights: Int32[np.ndarray, " n"]
        ) -> Int64[np.ndarray, " n"]:
            return np.searchsorted(edges, np.log(widths / heights))

        return pairs.compute(nearest, np.uint8, "width", "height")

    def transforms(self, transform: ImageTransform) -> list[ImageTransform]:
        """Return the transform of each bucket."""
        return [replace(transform, sides=shape) for shape in self.shapes]


def choose_buckets(pairs: PairList, shapes: Sequence[Shape], batch_size: int) -> Buckets:
    """Keep the shapes that have at least a batch of images; the other images move to the nearest.

    The rarest shape is removed until every remaining one has enough images, or only one is left.
    """
    buckets = Buckets(list(shapes))
    while len(buckets.shapes) > 1:
        counts = bucket_sizes(buckets.assign(pairs), len(buckets.shapes))
        if counts.min() >= batch_size:
            break
        rarest = int(counts.argmin())
        buckets = Buckets([shape for k, shape in enumerate(buckets.shapes) if k != rarest])
    return buckets
