"""The data of a training, read, checked, split, and given its shapes."""

from typing import Annotated

import numpy as np

from imagetext.buckets import Buckets, choose_buckets, shapes_up_to
from imagetext.folder import read_folder
from imagetext.pairs import Pairs
from imagetext.split import split
from training.bounds import Bound
from training.loop import progress_bar
from training.recipe import Recipe

Aspect = Annotated[float, Bound(lambda x: x >= 1, "1 or more, the longer side by the shorter")]


def read_pairs(recipe: Recipe, allow_missing_captions: bool = False) -> tuple[Pairs, Pairs]:
    """(to train on, held out)"""
    folder = read_folder(recipe.data, allow_missing_captions, progress_bar)
    for note in folder.notes:
        print(f"note: {note}")
    if not recipe.skip_unusable:
        folder.require_all_usable()
    return split(folder, recipe.held_out)


def read_shapes(
    pairs: Pairs, max_aspect: float, size: int, multiple: int, batch_size: int
) -> Buckets:
    """The shapes that these images are cropped to; says how many take which if there are several.

    multiple: what all sides must be a multiple of.
    """
    buckets = choose_buckets(pairs, shapes_up_to(max_aspect, size, multiple), batch_size)
    if max_aspect > 1:
        counts = np.bincount(buckets.of(pairs), minlength=len(buckets.shapes))
        shown = zip(buckets.shapes, counts.tolist(), strict=True)
        text = ", ".join(f"{count} of {width}x{height}" for (width, height), count in shown)
        print(f"images by shape: {text}; a batch holds one of them.")
    return buckets
