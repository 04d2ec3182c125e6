"""Numbers of a run: averaged on the device, written to metrics.jsonl, shown on boards."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from foundation.files import sync, write_text
from training.logging.loggers import Board
from training.run import require


class Averages:
    """Running means of 0-dim tensors, each over the steps in which it was there and finite.

    Adding costs no synchronization; reading costs one.
    """

    def __init__(self):
        self.names: list[str] = []
        self.totals = torch.zeros(2, 0, dtype=torch.float64)  # sums and counts

    def add(self, metrics: dict[str, Tensor]) -> None:
        if not metrics:
            return
        new = [name for name in metrics if name not in self.names]
        self.names += new
        values = {name: value.detach().double() for name, value in metrics.items()}
        absent = torch.full_like(next(iter(values.values())), math.nan)
        given = torch.stack([values.get(name, absent) for name in self.names])
        finite = given.isfinite()
        before = F.pad(self.totals.to(given.device), (0, len(new)))
        self.totals = before + torch.stack([given.where(finite, 0.0), finite.double()])

    def pop(self) -> dict[str, float]:
        """The means since the last call; NaN where no number was finite."""
        sums, counts = self.totals
        means = dict(zip(self.names, (sums / counts).tolist(), strict=True))
        self.names, self.totals = [], torch.zeros(2, 0, dtype=torch.float64)
        return means

    def state_dict(self) -> dict[str, Any]:
        return {"names": self.names, "totals": self.totals}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.names, self.totals = state["names"], state["totals"]


class MetricsFile:
    """metrics.jsonl, cut back to the step a run resumes from, and the boards beside it."""

    def __init__(self, run: Path, first_step: int, boards: Sequence[Board] = ()):
        self.file = run / "metrics.jsonl"
        lines = self.file.read_text().splitlines() if self.file.exists() else []
        kept = [line for line in lines if step_of(line) <= first_step]
        write_text(self.file, "".join(line + "\n" for line in kept))
        self.boards = boards

    def write(self, step: int, seen: dict[str, float | str]) -> None:
        """Numbers, and verdicts in words."""
        words = {name: value for name, value in seen.items() if isinstance(value, str)}
        numbers = {name: value for name, value in seen.items() if name not in words}
        # JSON has no NaN; null says that the number did not exist
        finite = {k: v if math.isfinite(v) else None for k, v in numbers.items()}
        require(self.file.parent)
        with self.file.open("a") as file:
            file.write(json.dumps({"step": step, **finite, **words}) + "\n")
        for board in self.boards:
            board.numbers(step, numbers)
            board.words(step, words)

    def picture(self, step: int, name: str, file: Path) -> None:
        """Shows a picture that lies in the run folder on the boards."""
        for board in self.boards:
            board.picture(step, name, file)

    def sync(self) -> None:
        """Waits until all lines are on the disk: a state of their step is about to be."""
        sync(self.file)

    def close(self) -> None:
        for board in self.boards:
            board.close()


class NoMetricsFile:
    """What the ranks have that write none."""

    def write(self, step: int, seen: dict[str, float | str]) -> None: ...

    def picture(self, step: int, name: str, file: Path) -> None: ...

    def sync(self) -> None: ...

    def close(self) -> None: ...


def step_of(line: str) -> float:
    """Infinite for a line that a crash or a full disk cut short: its step is done again."""
    try:
        return json.loads(line)["step"]
    except ValueError:
        return math.inf
