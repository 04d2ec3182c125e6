"""The data of a training, read, checked and split."""

from imagetext.folder import read_folder
from imagetext.pairs import Pairs
from imagetext.split import split
from training.loop import progress_bar
from training.recipe import Recipe


def read_pairs(recipe: Recipe, allow_missing_captions: bool = False) -> tuple[Pairs, Pairs]:
    """(to train on, held out)"""
    folder = read_folder(recipe.data, allow_missing_captions, progress_bar)
    if not recipe.skip_unusable:
        folder.require_all_usable()
    return split(folder, recipe.held_out)
