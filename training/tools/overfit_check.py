"""Overfit check: train on a handful of images, which every working training memorizes.

A training that works reaches a stated metric on them within minutes. One that does not has a fault
that a long run would only hide, and its loss curve shows of which kind.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory

from foundation.errors import UserError
from training.logging.metrics import read_metrics

STUCK = 0.95  # last quarter / first loss, above which the loss did not move
SLOW = 0.9  # last quarter / third quarter, below which the loss was still falling
ROSE = 1.5  # last quarter / lowest quarter, above which the loss rose again


@dataclass(frozen=True, kw_only=True)
class Target:
    """What the training must reach on its images."""

    metric: str  # name in metrics.jsonl; the last evaluation counts
    bound: float
    above: bool  # True: the metric must be at least the bound; False: at most
    words: str  # what the metric is, in words
    steps: int  # optimizer steps in which it must be reached
    limits: str  # likely causes if the loss stops falling too early

    def reached(self, value: float) -> bool:
        return value >= self.bound if self.above else value <= self.bound


def check_overfit(train: Callable[[Path], None], target: Target, loss: str, images: int) -> None:
    """Train in a temporary folder, and print whether the target was reached.

    Args:
        train: trains `target.steps` steps in the run folder that it is given.
        loss: name of the training loss in metrics.jsonl.
        images: how many images there are.

    Raises:
        UserError: the target was not reached; says what is likely wrong.
    """
    with TemporaryDirectory(prefix="overfit-", ignore_cleanup_errors=True) as folder:
        run = Path(folder) / "run"
        with redirect_stdout(StringIO()):  # it would name a model that is deleted right after
            train(run)
        lines = read_metrics(run / "metrics.jsonl")
    value = [line[target.metric] for line in lines if target.metric in line][-1]
    losses = [line[loss] for line in lines if loss in line]
    print(describe_outcome(target, math.nan if value is None else value, losses, images))


def describe_outcome(
    target: Target, value: float, losses: Sequence[float | None], images: int
) -> str:
    """Return a paragraph on a training that reached its target.

    Args:
        value: of the target's metric at the end.
        losses: training loss over time; None where it was not finite.

    Raises:
        UserError: the target was not reached.
    """
    required = f"{'at least' if target.above else 'at most'} {target.bound:g}"
    result = (
        f"{target.words} on {images} images is {value:.4g} after {target.steps} steps; "
        f"{required} is what a training that works reaches"
    )
    if target.reached(value):
        return f"memorized: {result}."
    raise UserError(f"not memorized: {result}. {likely_cause(losses, target)}")


def likely_cause(losses: Sequence[float | None], target: Target) -> str:
    """Return what is likely wrong according to the loss curve; None stands for NaN or infinity."""
    finite = [loss for loss in losses if loss is not None]
    if len(finite) < len(losses):
        return (
            "The loss became infinite or NaN: the learning rate is too high, or the images hold "
            "such values. Try a tenth of --learning-rate; then --precision fp32."
        )
    size = max(len(finite) // 4, 1)
    starts = range(len(finite) % size, len(finite), size)
    quarters = [fmean(finite[k : k + size]) for k in starts]
    first, third, last = finite[0], quarters[-2:][0], quarters[-1]
    change = f"The loss went from {first:.3g} to {last:.3g}"
    if last > STUCK * first:
        return (
            f"{change}: it hardly moved. The learning rate is far too high (then it jumps) or far "
            "too low, or no gradient reaches the weights. Try a tenth and ten times "
            "--learning-rate."
        )
    if last > ROSE * min(quarters):
        return (
            f"{change}, by way of {min(quarters):.3g}: it fell and rose again. The learning rate "
            "is too high; try a third of it."
        )
    if last < SLOW * third:
        return (
            f"{change} and was still falling: too slow rather than wrong. Try three times "
            "--learning-rate, or another --batch-size no larger than the number of images."
        )
    return f"{change} and stopped falling there. {target.limits}"
