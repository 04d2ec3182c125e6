"""A classifier whose classes are captions: which samples show what their captions say?"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from evaluation.estimates import Estimate, share_estimate
from evaluation.feature_spaces.choice import ChosenSpaces, refuse_equal_names
from evaluation.feature_spaces.files import script_space
from evaluation.feature_spaces.space import Features, FeatureSpace
from foundation.errors import UserError, listed, shown
from foundation.files import read_json
from foundation.json_reading import check_type
from stages.evaluation.blocks import Blocks
from training.tools.page import number_table

Logits = Float[Tensor, "n classes"]
NO_CLASS = -1  # label of an image whose caption is no class
NAMED = 3  # captions in a message


@dataclass(frozen=True)
class Classifier:
    """A network that says which caption an image has.

    captions: in the order of the logits.
    """

    space: FeatureSpace
    captions: tuple[str, ...]

    def join(self, chosen: ChosenSpaces) -> ChosenSpaces:
        """Return the feature spaces with that of the classifier among them."""
        if any(space.sha256 == self.space.sha256 for space in chosen.spaces):
            return chosen
        spaces = [*chosen.spaces, self.space]
        refuse_equal_names(spaces)
        return ChosenSpaces(spaces, chosen.missing)

    def labels(self, captions: Sequence[str]) -> Int[Tensor, " n"]:
        """Return the number of the class of each caption, `NO_CLASS` for those that are none.

        Raises:
            UserError: none of them is a class.
        """
        numbers = {caption: k for k, caption in enumerate(self.captions)}
        labels = torch.tensor([numbers.get(caption, NO_CLASS) for caption in captions])
        if bool((labels == NO_CLASS).all()):
            raise UserError(
                f"the classifier {self.space.name} knows the captions "
                f"{listed([shown(text) for text in self.captions[:NAMED]])}, ...; the data have "
                f"{listed([shown(text) for text in list(captions)[:NAMED]])}, ... and none of "
                "these. Train it on images with the captions of the model."
            )
        return labels


def load_classifier(file: Path, device: torch.device, size: int) -> Classifier:
    """Load a TorchScript network and the JSON file next to it, which names its classes.

    The network takes 8-bit images (b, 3, h, w) and returns logits (b, classes). With an argument
    `return_features` it is a feature space, too; otherwise its logits are the features.

    size: side of the images that it will get.

    Raises:
        UserError: one of both is no such file, or there are not as many captions as logits.
    """
    space = script_space(file, device)
    described = file.with_suffix(".json")
    captions = check_type(read_json(described).get("captions"), list[str], described, "captions")
    found = space(torch.zeros(1, 3, size, size, dtype=torch.uint8))
    classes = logits_of(found).shape[1]
    if classes != len(set(captions)) or classes != len(captions):
        raise UserError(
            f"{file} returns {classes} logits for an image; {described} must have as many "
            f"different captions, in the order of the logits, and has {len(set(captions))}."
        )
    return Classifier(space, tuple(captions))


def logits_of(features: Features) -> Logits:
    """Return the logits of a network that may have no features besides."""
    return features.vectors if features.logits is None else features.logits


def stored_logits(blocks: Blocks, name: str) -> Logits:
    """Return the logits of images whose features lie in blocks under a name."""
    logits = f"{name}/logits"
    return blocks.rows(logits if logits in blocks.names() else name)


def class_accuracy(
    logits: Mapping[str, Logits], labels: Int[Tensor, " n"], captions: Sequence[str]
) -> tuple[dict[str, Estimate], list[dict[str, Any]]]:
    """Return the share of images that show their class, of each set, and a table by class.

    Args:
        logits: name of a set of images -> logits of image k, which should be of class labels[k].
        labels: `NO_CLASS` for images that are left out.
        captions: of the classes.
    """
    known = labels != NO_CLASS
    hits = {name: (each.argmax(dim=1) == labels)[known] for name, each in logits.items()}
    left_out = int((~known).sum())
    note = f"{left_out:,} images whose caption is no class are left out" if left_out else ""
    estimates = {name: share_estimate(each, note=note) for name, each in hits.items()}
    table: list[dict[str, Any]] = []
    for label, caption in enumerate(captions):
        rows = labels[known] == label
        if bool(rows.any()):
            shares = {name: each[rows].double().mean().item() for name, each in hits.items()}
            table.append({"caption": caption, "images": int(rows.sum()), **shares})
    return estimates, table


def class_section(title: str, rows: list[dict[str, Any]]) -> str:
    """Return HTML with the accuracy by class."""
    head = list(rows[0])
    cells = [
        [f"{row[name]:.3f}" if isinstance(row[name], float) else str(row[name]) for name in head]
        for row in rows
    ]
    return f"<h2>{title}</h2>{number_table(head, cells)}"
