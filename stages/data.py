"""The data folder of a training, read, checked and split."""

from imagetext.folder import Pair, read_folder
from imagetext.numbers import the_type
from imagetext.split import split
from training.recipe import Recipe


def read_pairs(
    recipe: Recipe, allow_missing_captions: bool = False
) -> tuple[list[Pair], list[Pair]]:
    """(to train on, held out)"""
    folder = read_folder(recipe.data, allow_missing_captions)
    if not recipe.skip_unusable:
        folder.require_all_usable()
    the_type(folder)
    return split(folder, recipe.held_out)
