"""Numbers of a run: averaged on the device, written to metrics.jsonl, shown on boards."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from training.boards import Board
from training.run import write_text


class Averages:
    """Running means of 0-dim tensors. Adding costs no synchronization; reading costs one."""

    def __init__(self):
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}

    def add(self, metrics: dict[str, Tensor]) -> None:
        for name, value in metrics.items():
            value = value.detach().double()
            if name in self.sums:
                value = value + self.sums[name].to(value.device)
            self.sums[name] = value
            self.counts[name] = self.counts.get(name, 0) + 1

    def pop(self) -> dict[str, float]:
        """The means since the last call."""
        if not self.sums:
            return {}
        values = torch.stack(list(self.sums.values())).tolist()
        means = {
            name: value / self.counts[name] for name, value in zip(self.sums, values, strict=True)
        }
        self.sums, self.counts = {}, {}
        return means

    def state_dict(self) -> dict[str, Any]:
        return {"sums": self.sums, "counts": self.counts}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.sums, self.counts = state["sums"], state["counts"]


class MetricsFile:
    """metrics.jsonl, cut back to the step a run resumes from, and the boards beside it."""

    def __init__(self, run: Path, first_step: int, boards: Sequence[Board] = ()):
        self.file = run / "metrics.jsonl"
        if self.file.exists():
            lines = self.file.read_text().splitlines()
            kept = [line for line in lines if step_of(line) <= first_step]
            write_text(self.file, "".join(line + "\n" for line in kept))
        self.boards = boards

    def write(self, step: int, seen: dict[str, float | str]) -> None:
        """Numbers, and verdicts in words."""
        words = {name: value for name, value in seen.items() if isinstance(value, str)}
        numbers = {name: value for name, value in seen.items() if name not in words}
        # JSON has no NaN; null says that the number did not exist
        finite = {k: v if math.isfinite(v) else None for k, v in numbers.items()}
        with self.file.open("a") as file:
            file.write(json.dumps({"step": step, **finite, **words}) + "\n")
        for board in self.boards:
            board.numbers(step, numbers)
            board.words(step, words)

    def picture(self, step: int, name: str, file: Path) -> None:
        """Shows a picture that lies in the run folder on the boards."""
        for board in self.boards:
            board.picture(step, name, file)

    def close(self) -> None:
        for board in self.boards:
            board.close()


def step_of(line: str) -> float:
    """Infinite for a line that a crash or a full disk cut short: its step is done again."""
    try:
        return json.loads(line)["step"]
    except ValueError:
        return math.inf
