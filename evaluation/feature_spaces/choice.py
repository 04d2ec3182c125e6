"""The feature spaces that a user names, and those that are used where none is named."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from evaluation.feature_spaces import files
from evaluation.feature_spaces.fidelity import NAMES, fidelity_space
from evaluation.feature_spaces.space import FeatureSpace, MissingWeights
from foundation.errors import MissingFileError, UserError, shown
from interop.open_clip_models import find_clip_folder

USUAL = ("inception", "dinov2", "clip")  # each is used if its weights are on this machine


@dataclass(frozen=True)
class ChosenSpaces:
    """Feature spaces, and what was left out.

    Args:
        spaces: those that will be used.
        missing: name -> the message that says which file to fetch.
    """

    spaces: list[FeatureSpace] = field(default_factory=list[FeatureSpace])
    missing: dict[str, str] = field(default_factory=dict[str, str])


def choose_spaces(names: Sequence[str], device: torch.device) -> ChosenSpaces:
    """Load feature spaces.

    names: of torch-fidelity's networks; run folders of train_clip.py or folders of open_clip;
        ARCHITECTURE:FILE of open_clip; TorchScript files. Empty: those of `USUAL` that are there.

    Raises:
        UserError: one that is named is missing, or is nothing of this.
    """
    if names:
        spaces = [load_space(name, device) for name in names]
        refuse_equal_names(spaces)
        return ChosenSpaces(spaces)
    chosen = ChosenSpaces()
    for name in USUAL:
        try:
            chosen.spaces.append(load_space(name, device))
        except MissingFileError as error:
            chosen.missing[name] = str(error)
    return chosen


def refuse_equal_names(spaces: Sequence[FeatureSpace]) -> None:
    """Raise UserError if two feature spaces have the same name."""
    clashing = {one.name for one in spaces if [s.name for s in spaces].count(one.name) > 1}
    if clashing:
        raise UserError(
            f"two feature spaces have the name {shown(clashing.pop())}; name each once."
        )


def load_space(name: str, device: torch.device) -> FeatureSpace:
    """Load the feature space that a name or a path stands for.

    Raises:
        MissingWeights: its weights are not on this machine.
        UserError: it is no feature space.
    """
    if name in NAMES:
        return fidelity_space(name, device)
    architecture, colon, file = name.partition(":")
    if colon and not Path(name).exists():
        if not Path(file).is_file():
            raise MissingWeights(f"{name}: there is no file {file} with weights of {architecture}.")
        return files.architecture_space(architecture, Path(file), device)
    path = Path(name)
    if folder := find_clip_folder(path):
        return files.folder_space(folder, path.resolve().name, device)
    if path.is_file() and path.suffix in files.SCRIPT_ENDINGS:
        return files.script_space(path, device)
    raise MissingFileError(
        f"{shown(name)} is no feature space. Give one of {', '.join(NAMES)}; a run folder of "
        "train_clip.py; ARCHITECTURE:FILE of open_clip; or a TorchScript file "
        f"({', '.join(files.SCRIPT_ENDINGS)})."
    )
