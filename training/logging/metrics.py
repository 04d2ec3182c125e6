"""Metrics of a run: averaged on the device, written to metrics.jsonl, sent to loggers."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from foundation.errors import listed
from foundation.files import read_bytes, sync, write_text
from foundation.json_reading import from_json, load_object
from training.logging.loggers import MetricsLogger
from training.run import check_run_exists

# Old name -> name today, of metrics that runs begun earlier have in their files.
LARGEST_FILE = 2**31  # bytes of metrics.jsonl
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
        device = next(iter(metrics.values())).device
        dtype = torch.float32 if device.type == "mps" else torch.float64  # MPS has no float64
        values = {name: value.detach().to(dtype) for name, value in metrics.items()}
        missing = torch.full_like(next(iter(values.values())), math.nan)
        row = torch.stack([values.get(name, missing) for name in self.names])
        finite = row.isfinite()
        before = F.pad(self.totals.to(row), (0, len(new)))
        self.totals = before + torch.stack([row.where(finite, 0.0), finite.to(dtype)])

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
        lines = numbered_lines(self.file)
        kept = [line for line, step in lines if step <= first_step]
        damaged = [k for k, (_, step) in enumerate(lines[:-1], 1) if step == math.inf]
        if damaged:
            print(f"note: {self.file} is damaged in line {listed(damaged)}, which is left out.")
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
        with self.file.open("a", encoding="ascii", newline="\n") as file:
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


@dataclass(frozen=True)
class MetricsLine:
    """What every line of metrics.jsonl has, besides its metrics."""

    step: int


def numbered_lines(file: Path) -> list[tuple[str, float]]:
    """Return the lines of metrics.jsonl, each with its step.

    The step of a damaged line is infinity: a crash cut it short, and its step is done again.
    """
    lines: list[tuple[str, float]] = []
    for line in read_bytes(file, LARGEST_FILE).splitlines() if file.exists() else []:
        try:
            step = from_json(MetricsLine, load_object(line, file, not_finite=True), file).step
            lines.append((line.decode("utf-8"), step))
        except ValueError:
            lines.append((line.decode("utf-8", "replace"), math.inf))
    return lines


def read_metrics(file: Path) -> list[dict[str, Any]]:
    """Read the lines of metrics.jsonl, each metric under its name of today.

    A line that is being written, or was cut short, is left out, and so is what is neither a number
    nor a text. A missing file has no lines.
    """
    return [
        {
            RENAMED.get(name, name): value
            for name, value in load_object(line, file, not_finite=True).items()
            if value is None or type(value) in (int, float, str)
        }
        for line, step in numbered_lines(file)
        if step < math.inf
    ]
