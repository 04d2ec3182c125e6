"""The best weights of a run so far: best/, a model folder, chosen by what the evaluations measure.

Which weights are there follows from best/ itself, which is written as a whole with the number that
chose it. A run that goes on from a state before that number evaluates the same steps once more and
finds nothing better, so a stopped run ends with the same best/ as one that ran through.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from foundation import collectives
from foundation.files import atomic_folder, read_json, restore, write_json
from foundation.json_reading import from_json
from training.logging.progress import print_line

FILE = "best.json"  # in the folder of the model


@dataclass(frozen=True, kw_only=True)
class Best:
    """The content of best.json."""

    metric: str
    value: float
    step: int


@dataclass(frozen=True, kw_only=True)
class Criterion:
    """The number that chooses: its name in the metrics, in words, and which values are better."""

    metric: str
    words: str
    higher_is_better: bool

    def is_better(self, value: float, best: float) -> bool:
        """Return whether a value is better than the best so far; NaN never is."""
        return value > best if self.higher_is_better else value < best


class BestModel:
    """Writes the weights whenever an evaluation finds a better number than all before."""

    def __init__(
        self, folder: Path, criterion: Criterion, write: Callable[[Path, dict[str, Any]], None]
    ):
        """Read what a run that goes on has kept.

        Args:
            folder: best/ of the run.
            write: writes a model folder with these further facts about it. It is called on every
                rank, and writes on rank 0 alone.
        """
        self.folder, self.criterion, self.write = folder, criterion, write
        if not collectives.rank():
            restore(folder)
        self.found = read_best(folder)
        if self.found is not None and self.found.metric != criterion.metric:
            self.found = None  # chosen by another number, which cannot be compared

    def offer(self, step: int, results: Mapping[str, float | str]) -> None:
        """Write the weights of this step if the results of its evaluation are the best so far."""
        value = float(results[self.criterion.metric])
        first = self.found is None and math.isfinite(value)
        better = self.found is not None and self.criterion.is_better(value, self.found.value)
        if not collectives.any_rank(not collectives.rank() and (first or better)):
            return
        self.found = Best(metric=self.criterion.metric, value=value, step=step)
        facts = {"best": asdict(self.found)}
        if collectives.rank():
            return self.write(self.folder, facts)
        with atomic_folder(self.folder) as partial:
            self.write(partial, facts)
            write_json(partial / FILE, asdict(self.found))
        print_line(
            f"step {step}: {self.criterion.words} {value:.4g} is the best so far; the weights are "
            f"kept in {self.folder}."
        )


def read_best(folder: Path) -> Best | None:
    """Return what best/ was chosen by; None if there is none.

    Raises:
        UserError: best.json is damaged.
    """
    file = folder / FILE
    return from_json(Best, read_json(file), file) if file.is_file() else None
