"""Whether samples copy training images: how near they lie to them in a feature space."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from evaluation.distances import Features, check_features, rows
from foundation.errors import UserError

SURE = 3.0  # standard deviations beyond which the verdict is certain


@dataclass(frozen=True)
class Neighbors:
    """The nearest training image of each image: its distance and its number."""

    distances: Float[Tensor, " n"]
    indices: Int[Tensor, " n"]


def nearest(features: Features, training: Features) -> Neighbors:
    """Find the training image whose features are nearest, by the Euclidean distance.

    Raises:
        NotFiniteError: a feature is NaN or infinite.
        UserError: there are no training images, or the features have other widths.
    """
    if not len(training) or features.shape[1] != training.shape[1]:
        raise UserError(
            f"the nearest training image is looked for among {tuple(training.shape)} features, for "
            f"images with {features.shape[1]} numbers each; give features of one network."
        )
    check_features(features, "the images")
    check_features(training, "the training images")
    found = [distances.min(dim=1) for distances in rows(features.double(), training.double())]
    return Neighbors(
        torch.cat([one.values for one in found]), torch.cat([one.indices for one in found])
    )


def copying_score(samples: Float[Tensor, " n"], held_out: Float[Tensor, " m"]) -> float:
    """Compare distances to the nearest training image: those of samples, and of held-out images.

    It is the statistic of Mann and Whitney as a number of standard deviations, as Meehan et al.
    2020 (arXiv:2004.05675, section 3) use it to detect copies. About 0: samples lie as near to
    training images as images do that the model has not seen. Far below 0: nearer; it copies. Far
    above 0: farther; samples are not yet like real images.

    Ties count as half.

    Raises:
        UserError: one of them is empty.
    """
    n, m = len(samples), len(held_out)
    if not n or not m:
        raise UserError(
            f"copies are looked for in {n} samples and {m} held-out images; both need 1."
        )
    ordered = held_out.double().sort().values
    values = samples.double()
    below = torch.searchsorted(ordered, values, right=False)
    not_above = torch.searchsorted(ordered, values, right=True)
    farther = (below + not_above).double().sum().item() / 2  # pairs whose sample is farther away
    return (farther - n * m / 2) / (n * m * (n + m + 1) / 12) ** 0.5


def copying_verdict(score: float) -> str:
    """Say in words what a `copying_score` means."""
    if score < -SURE:
        return "samples lie nearer to training images than held-out images do: the model copies"
    if score > SURE:
        return "samples lie farther from training images than held-out images do: no copies seen"
    return "samples lie as near to training images as held-out images do: no copies seen"
