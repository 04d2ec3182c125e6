"""The data of a training, read, checked, split, and given its shapes."""

import hashlib
from typing import Annotated, Any

import numpy as np

from dataset.buckets import Buckets, choose_buckets, shapes_up_to
from dataset.folder import read_folder
from dataset.images.numbers import the_type
from dataset.split import split
from dataset.table import Pairs
from foundation import collectives
from foundation.errors import UserError
from training import distributed
from training.config import TrainingConfig
from training.flags import Bound
from training.logging.progress import progress_bar
from training.watchdog import report_progress

Aspect = Annotated[float, Bound(lambda x: x >= 1, "1 or more, the longer side by the shorter")]


def read_pairs(recipe: TrainingConfig, allow_missing_captions: bool = False) -> tuple[Pairs, Pairs]:
    """(to train on, held out)"""
    recipe.check()
    report_progress("reading the data folder")
    distributed.check_batch_size(recipe.batch_size, recipe.accumulate)
    with collectives.rank_zero_first():  # which decodes and indexes; the others find the index
        folder = read_folder(recipe.data, allow_missing_captions, progress_bar)
    for note in folder.notes:
        print(f"note: {note}")
    if not recipe.skip_unusable:
        folder.require_all_usable()
    the_type(folder)
    if recipe.overfit > len(folder.pairs):
        raise UserError(f"--overfit {recipe.overfit}: there are {len(folder.pairs)} images.")
    if recipe.overfit:
        return folder.pairs[: recipe.overfit], folder.pairs[:0]
    return split(folder, recipe.held_out)


def data_identity(pairs: Pairs, held_out: Pairs, captions: bool = True) -> dict[str, Any]:
    """What a run is bound to besides its flags: with other images, or in another order, a step
    would see others than before. Names are no part of it but for their order: folders move.

    captions: whether they are trained on.
    """
    digest = hashlib.sha256()
    for column in ("sha256", "captions_hash")[: 1 + captions]:
        digest.update(np.ascontiguousarray((pairs + held_out).column(column)))
    counts = {"training": len(pairs), "held_out": len(held_out)}
    return {"data_files": {**counts, "sha256": digest.hexdigest()}}


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
