"""The data folder of a training, read, checked and split."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from imagetext.folder import Pair, read_folder
from imagetext.split import split
from training.ranks import check_share
from training.recipe import Recipe
from training.watch import phase


def read_pairs(
    recipe: Recipe, allow_missing_captions: bool = False
) -> tuple[list[Pair], list[Pair]]:
    """(to train on, held out)"""
    recipe.check()
    phase("reading the data folder")
    check_share(recipe.batch_size, recipe.accumulate)
    folder = read_folder(recipe.data, allow_missing_captions)
    if not recipe.skip_unusable:
        folder.require_all_usable()
    return split(folder, recipe.held_out)


def data_identity(
    recipe: Recipe, pairs: Sequence[Pair], held_out: Sequence[Pair], captions: bool = True
) -> dict[str, Any]:
    """What a run is bound to besides its flags: with other files, or files of other names, a step
    would see other images than before.

    captions: whether they are trained on.
    """
    digest = hashlib.sha256()
    for pair in (*pairs, *held_out):
        name = pair.path.relative_to(recipe.data).as_posix()
        digest.update(json.dumps([name, *(pair.captions if captions else ())]).encode())
    counts = {"training": len(pairs), "held_out": len(held_out)}
    return {"data_files": {**counts, "names_sha256": digest.hexdigest()}}
