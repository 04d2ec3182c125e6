"""The data folder of a training, read, checked and split."""

from imagetext.folder import Pair, read_folder
from imagetext.split import split
from training.recipe import Recipe


def read_pairs(
    recipe: Recipe, allow_missing_captions: bool = False
) -> tuple[list[Pair], list[Pair]]:
    """(to train on, held out)"""
    folder = read_folder(recipe.data, allow_missing_captions)
    if not recipe.skip_unusable:
        folder.require_all_usable()
    if recipe.overfit > len(folder.pairs):
        raise ValueError(f"--overfit {recipe.overfit}: there are {len(folder.pairs)} images.")
    if recipe.overfit:
        return folder.pairs[: recipe.overfit], []
    return split(folder, recipe.held_out)
