"""Metrics of a run: averaged on the device, written to metrics.jsonl, sent to loggers."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from foundation.files import sync, write_text
from training.logging.loggers import MetricsLogger
from training.run import check_run_exists

# Old name -> name today, of metrics that runs begun earlier have in their files.
RENAMED = {"share_of_nothing": "val_loss_relative"}


class RunningMeans:
    """Means of 0-dim tensors, each over the steps in which it was given and finite.

    Adding does not wait for the device; `pop` does.
    """

    def __init__(self):
        self.names: list[str] = []
        self.totals = torch.zeros(2, 0, dtype=torch.float64)  # sums and counts

    def add(self, metrics: Mapping[str, Tensor]) -> None:
        """Add the metrics of one step."""
        if not metrics:
            return
        new = [name for name in metrics if name not in self.names]
        self.names += new
        values = {name: value.detach().double() for name, value in metrics.items()}
        missing = torch.full_like(next(iter(values.values())), math.nan)
        row = torch.stack([values.get(name, missing) for name in self.names])
        finite = row.isfinite()
        before = F.pad(self.totals.to(row.device), (0, len(new)))
        self.totals = before + torch.stack([row.where(finite, 0.0), finite.double()])

    def pop(self) -> dict[str, float]:
        """Return the means since the last call; NaN where no value was finite."""
        sums, counts = self.totals
        means = dict(zip(self.names, (sums / counts).tolist(), strict=True))
        self.names, self.totals = [], torch.zeros(2, 0, dtype=torch.float64)
        return means

    def state_dict(self) -> dict[str, Any]:
        return {"names": self.names, "totals": self.totals}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.names, self.totals = state["names"], state["totals"]


class MetricsFile:
    """The file metrics.jsonl of a run, and the loggers that get the same numbers."""

    def __init__(self, run: Path, first_step: int, loggers: Sequence[MetricsLogger] = ()):
        """Open the file, and remove the lines of steps that will be done again.

        Args:
            run: the run folder.
            first_step: the step that the run resumes from; later lines are removed.
        """
        self.file = run / "metrics.jsonl"
        lines = self.file.read_text().splitlines() if self.file.exists() else []
        kept = [line for line in lines if step_of(line) <= first_step]
        write_text(self.file, "".join(line + "\n" for line in kept))
        self.loggers = loggers
        for old, new in RENAMED.items():
            if any(f'"{old}"' in line for line in kept):
                print(f"note: {old} in {self.file} is written as {new} from here on.")

    def write(self, step: int, values: Mapping[str, float | str]) -> None:
        """Write a line of numbers and texts."""
        texts = {name: value for name, value in values.items() if isinstance(value, str)}
        numbers = {name: value for name, value in values.items() if not isinstance(value, str)}
        # JSON has no NaN; null says that the number was not finite
        finite = {k: v if math.isfinite(v) else None for k, v in numbers.items()}
        check_run_exists(self.file.parent)
        with self.file.open("a") as file:
            file.write(json.dumps({"step": step, **finite, **texts}) + "\n")
        for logger in self.loggers:
            logger.log_numbers(step, numbers)
            logger.log_texts(step, texts)

    def image(self, step: int, name: str, file: Path) -> None:
        """Send an image of the run folder to the loggers."""
        for logger in self.loggers:
            logger.log_image(step, name, file)

    def sync(self) -> None:
        """Wait until all lines are on the disk; the state of their step is saved after that."""
        sync(self.file)

    def close(self) -> None:
        for logger in self.loggers:
            logger.close()


class NoMetricsFile:
    """A stand-in for `MetricsFile` on the ranks that write nothing."""

    def write(self, step: int, values: Mapping[str, float | str]) -> None: ...

    def image(self, step: int, name: str, file: Path) -> None: ...

    def sync(self) -> None: ...

    def close(self) -> None: ...


def step_of(line: str) -> float:
    """Return the step of a line; infinity if a crash cut it short, as its step is done again."""
    try:
        return json.loads(line)["step"]
    except ValueError:
        return math.inf


def read_metrics(file: Path) -> list[dict[str, Any]]:
    """Read the lines of metrics.jsonl, each metric under its name of today.

    A line that is being written, or was cut short, ends the list. A missing file has no lines.
    """
    lines: list[dict[str, Any]] = []
    for text in file.read_text().splitlines() if file.exists() else []:
        try:
            values: dict[str, Any] = json.loads(text)
        except ValueError:
            break
        lines.append({RENAMED.get(name, name): value for name, value in values.items()})
    return lines
