"""Numbers with intervals, and the verdict on two of them.

An interval covers the choice of the images (95 %), and nothing else: not the seed of a training,
and not the bias that a Fréchet distance of few images has.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

Direction = Literal["higher", "lower", ""]  # which values are better; "": none is
Z95 = 1.959964  # 95 % of a normal distribution lie within so many standard deviations
RESAMPLES = 1000


@dataclass(frozen=True)
class Estimate:
    """A number that was measured on some images.

    Args:
        low, high: where the number lies with a probability of 95 % for other images of the same
            kind; None: not known.
        note: what a reader must know to use the number.
    """

    value: float
    low: float | None = None
    high: float | None = None
    better: Direction = ""
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        text = f"{self.value:.4g}"
        if self.low is not None and self.high is not None:
            text += f" [{self.low:.4g}, {self.high:.4g}]"
        return text


def resampling_weights(
    count: int, resamples: int = RESAMPLES, seed: int = 0
) -> Float[Tensor, "resamples count"]:
    """Draw how often each of `count` items is in each bootstrap sample, divided by `count`.

    Efron 1979: a sample of the same size, drawn with replacement.
    """
    random = torch.Generator().manual_seed(seed)
    chosen = torch.randint(count, (resamples, count), generator=random)
    weights = torch.zeros(resamples, count, dtype=torch.float64)
    ones = torch.ones((), dtype=torch.float64).expand(resamples, count)
    return weights.scatter_add_(1, chosen, ones) / count


def mean_estimate(
    values: Float[Tensor, " images"], better: Direction = "", note: str = "", seed: int = 0
) -> Estimate:
    """Return the mean over images, with the percentile interval of the bootstrap.

    Infinite values, such as the PSNR of an exact reconstruction, make the mean infinite.
    """
    values = values.double()
    mean = values.mean().item()
    if len(values) < 2 or not bool(values.isfinite().all()):
        return Estimate(mean, None, None, better, note)
    means = torch.cat(
        [
            resampling_weights(len(values), some, derived) @ values
            for some, derived in passes(len(values), seed)
        ]
    )
    low, high = means.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Estimate(mean, low, high, better, note)


def passes(count: int, seed: int) -> list[tuple[int, int]]:
    """Divide the resamples into (how many, seed), so that few weights are in memory at once."""
    size = max(1, min(RESAMPLES, 20_000_000 // count))
    return [(min(size, RESAMPLES - k), seed + k) for k in range(0, RESAMPLES, size)]


def share_estimate(
    hits: Bool[Tensor, " images"], better: Direction = "higher", note: str = ""
) -> Estimate:
    """Return the share of hits, with Wilson's interval (1927), which also holds near 0 and 1."""
    return wilson(hits.double().mean().item(), len(hits), better, note)


def wilson(share: float, count: int, better: Direction = "higher", note: str = "") -> Estimate:
    """Return a share of `count` images with Wilson's interval."""
    square = Z95**2
    center = (share + square / (2 * count)) / (1 + square / count)
    spread = math.sqrt(share * (1 - share) / count + square / (4 * count**2))
    half = Z95 * spread / (1 + square / count)
    low, high = max(0.0, center - half), min(1.0, center + half)
    return Estimate(share, min(low, share), max(high, share), better, note)


def verdict(first: Estimate, second: Estimate) -> str:
    """Say whether `second` is better than `first`: two measurements of other images or samples.

    The standard errors are those of intervals of normal distributions.
    """
    if not (math.isfinite(first.value) and math.isfinite(second.value)):
        return "cannot be compared"
    errors: list[float] = []
    for one in (first, second):
        if one.low is None or one.high is None:
            return "no interval is known"
        errors.append((one.high - one.low) / (2 * Z95))
    return describe_difference(second.value - first.value, math.hypot(*errors), first.better)


def paired_verdict(
    first: Float[Tensor, " images"], second: Float[Tensor, " images"], better: Direction
) -> str:
    """Say whether `second` is better than `first`, measured on the same images one by one.

    The difference of each image varies much less than the values: this sees smaller differences.
    """
    differences = second.double() - first.double()
    if len(differences) < 2 or not bool(differences.isfinite().all()):
        return "cannot be compared"
    error = (differences.std() / len(differences) ** 0.5).item()
    return describe_difference(differences.mean().item(), error, better)


def describe_difference(difference: float, error: float, better: Direction) -> str:
    """Return the verdict on a difference whose standard error is known."""
    if abs(difference) <= Z95 * error or difference == 0:
        return "no difference seen"
    if not better:
        return "different, 95 %"
    return "better, 95 %" if (difference > 0) == (better == "higher") else "worse, 95 %"
