"""Overlapping tiles along one side of an image: where they begin, and how they are blended."""

import math

import torch
from jaxtyping import Float
from torch import Tensor


def tile_starts(size: int, tile: int, overlap: int, *, evenly: bool = False) -> list[int]:
    """Return where tiles begin that together cover `size` positions; the last one ends at the end.

    A side that fits into one tile has one start, 0.

    Args:
        tile: length of a tile.
        overlap: positions that neighbors share at least, 0 to tile - 1.
        evenly: spread the starts at equal distances, so that all neighbors share about equally
            much. Otherwise each tile shares exactly `overlap`, and the last one what is left.
    """
    last = max(0, size - tile)
    stride = tile - overlap
    if evenly and last:
        steps = math.ceil(last / stride)
        return [round(k * last / steps) for k in range(steps + 1)]
    return [*range(0, last, stride), last]


def blend_ramp(size: int, overlap: int) -> Float[Tensor, " size"]:
    """Return weights that are 1 in the middle and fall linearly to nearly 0 towards both ends.

    overlap: width of each slope. Where two tiles share exactly `overlap` positions, their weights
        add up to 1.
    """
    distance = torch.arange(size) + 0.5  # of each position's center from the border
    distance = torch.minimum(distance, distance.flip(0))
    return (distance / max(overlap, 0.5)).clamp(max=1)
