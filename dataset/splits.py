"""The splits of a data set: which files are for training, for validation, and for the test.

A split is a folder train/, validation/ or test/ next to another one, or the beginning of a table's
name (train-00000-of-00002.parquet). The names are those that the imagefolder of Hugging Face's
datasets knows. Splits must be kept apart: a model that has been trained on test images can no
longer be tested on them.
"""

import posixpath
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from foundation.errors import UserError, listed, shown

SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
WORDS = {word: split for split, words in SPLITS.items() for word in words}
NUMBER = r"([-_. ]?\d[\w.-]*)?"  # val2017, train-00000-of-00002
NAME = re.compile(rf"({'|'.join(WORDS)}){NUMBER}", re.IGNORECASE)


def split_of(part: str) -> str | None:
    """Return the split that the name of a folder, or of a table without ending, means."""
    match = NAME.fullmatch(part)
    return WORDS[match[1].lower()] if match else None


def split_folders(names: Iterable[str]) -> dict[str, str]:
    """Return the folders that are splits: their paths, as in `names`, with the split of each.

    They lie side by side, in the root or in the one folder that holds everything.

    names: of files, relative to the root, with slashes.
    """
    folders = {posixpath.dirname(name) for name in names}
    parts = [folder.split("/") if folder else [] for folder in folders]
    common = list(posixpath.commonprefix(parts))
    for depth in range(len(common) + 1):
        paths = {"/".join(path[: depth + 1]) for path in parts if len(path) > depth}
        found = {path: split_of(posixpath.basename(path)) for path in paths}
        splits = [(path, split) for path, split in sorted(found.items()) if split]
        if splits:
            return dict(sorted(splits, key=lambda item: list(SPLITS).index(item[1])))
    return {}


def choose_split(found: Sequence[str], split: str | None, data: Path, shown_as: str) -> str | None:
    """Return the split to read; None if there is none, or one that is everything.

    Args:
        found: the splits that the data set has, by the names in SPLITS or by other names.
        split: what the user asks for, in any of the spellings of SPLITS.
        shown_as: how messages show them, such as "train/ and test/".

    Raises:
        UserError: there are several splits and none is chosen, or there is no such split.
    """
    if split is None:
        if len(set(found)) > 1:
            choices = listed([f"split={name!r}" for name in dict.fromkeys(found)])
            raise UserError(
                f"{data} holds {shown_as}, which must be kept apart. Choose one: {choices}."
            )
        return None
    for name in (split, WORDS.get(split.lower())):
        if name in found:
            return name
    has = f"it has {shown_as}" if found else "it has no folders such as train/ and test/"
    raise UserError(f"{data} has no split {shown(split)}; {has}.")
