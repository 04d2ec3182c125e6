"""Train on a handful of images: whoever cannot learn these by heart will not learn more.

A training that works reaches a stated number on them within minutes. One that does not has a fault
that a long run would only hide, and the course of its loss says of which kind.
"""

import json
import math
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory

from foundation.errors import UserError

STUCK = 0.95  # of the first loss: it did not move
SLOW = 0.9  # of the loss of the third quarter: it was still falling in the fourth
ROSE = 1.5  # times the loss of the lowest quarter


@dataclass(frozen=True, kw_only=True)
class Target:
    """What the training must reach on its images."""

    metric: str  # of metrics.jsonl, as the last look wrote it
    bound: float
    above: bool  # whether the metric must be at least the bound; at most, else
    words: str  # what the metric is
    steps: int  # in which it must be reached
    limits: str  # likely causes if the loss comes to rest too early

    def reached(self, value: float) -> bool:
        return value >= self.bound if self.above else value <= self.bound


def overfit(train: Callable[[Path], None], target: Target, loss: str, images: int) -> None:
    """Trains in a folder that is thrown away, and tells the outcome.

    Args:
        train: given a folder for the run, trains `target.steps` steps to the end.
        loss: name of the training loss in metrics.jsonl.

    Raises:
        ValueError: the target was not reached; says what is likely wrong.
    """
    with TemporaryDirectory(prefix="overfit-") as folder:
        with redirect_stdout(StringIO()):  # which tells of a model that nobody is to use
            train(Path(folder) / "run")
        lines = (Path(folder) / "run" / "metrics.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in lines]
    value = [line[target.metric] for line in found if target.metric in line][-1]
    losses = [line[loss] for line in found if loss in line]
    print(outcome(target, math.nan if value is None else value, losses, images))


def outcome(target: Target, value: float, losses: Sequence[float | None], images: int) -> str:
    """One paragraph.

    Raises:
        ValueError: the target was not reached.
    """
    asked = f"{'at least' if target.above else 'at most'} {target.bound:g}"
    told = (
        f"{target.words} on {images} images is {value:.4g} after {target.steps} steps; "
        f"{asked} is what a training that works reaches"
    )
    if target.reached(value):
        return f"learned by heart: {told}."
    raise UserError(f"NOT learned by heart: {told}. {causes(losses, target)}")


def causes(losses: Sequence[float | None], target: Target) -> str:
    """What is likely wrong, by the course of the loss. None stands for a loss not finite."""
    if None in losses:
        return (
            "The loss became infinite or NaN: the learning rate is too high, or the images hold "
            "such values. Try a tenth of --learning-rate; then --precision fp32."
        )
    size = max(len(losses) // 4, 1)
    quarters = [fmean(losses[k : k + size]) for k in range(len(losses) % size, len(losses), size)]
    first, third, last = losses[0], quarters[-2:][0], quarters[-1]
    course = f"The loss went from {first:.3g} to {last:.3g}"
    if last > STUCK * first:
        return (
            f"{course}: it hardly moved. The learning rate is far too high (then it jumps) or far "
            "too low, or no gradient reaches the weights. Try a tenth and ten times "
            "--learning-rate."
        )
    if last > ROSE * min(quarters):
        return (
            f"{course}, by way of {min(quarters):.3g}: it fell and rose again. The learning rate "
            "is too high; try a third of it."
        )
    if last < SLOW * third:
        return (
            f"{course} and was still falling: too slow rather than wrong. Try three times "
            "--learning-rate, or another --batch-size no larger than the number of images."
        )
    return f"{course} and came to rest there. {target.limits}"
