"""What there is to say about each run in a folder: its kind, how far it is, and its verdicts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from foundation.errors import UserError
from foundation.files import read_json
from foundation.json_reading import from_json
from training.logging.metrics import read_metrics
from training.run import last_event
from training.run_lock import holder_of
from training.tools.curves import COLORS, Points
from training.tools.report_page import collect_verdicts, is_warning, shown_metrics
from training.tools.run_folders import find_runs, script_of

KINDS = {
    "train_clip.py": "text encoder",
    "train_vae.py": "autoencoder",
    "train_ldm.py": "model that draws",
}
RATES = 5  # lines of metrics.jsonl whose images per second are averaged
METRICS = 64  # files that stay in memory
MOST_COMPARED = len(COLORS)  # runs in one chart

RunState = Literal["running", "finished", "stopped"]
Lines = Sequence[Mapping[str, Any]]  # of metrics.jsonl


@dataclass(frozen=True)
class PlannedSteps:
    """The settings of a run that its summary needs."""

    steps: int = 0
    batch_size: int = 0
    preset: str = ""
    condition: str = "text"
    task: str = "draw"
    lora: int | None = None


@dataclass(frozen=True)
class RunSummary:
    """A run, as a list of runs shows it.

    Args:
        name: of its folder, relative to the folder of runs.
        state: whether somebody trains there, or its model is written, or neither.
        rate: images per second, lately; None if it is not known.
        verdicts: the last one of each kind, with its step.
    """

    path: Path
    name: str
    script: str
    state: RunState
    plan: PlannedSteps
    step: int
    rate: float | None
    verdicts: list[tuple[int, str]]
    changed: float  # seconds since 1970

    @property
    def kind(self) -> str:
        """What it trains, in words."""
        words = [KINDS[self.script]]
        if self.plan.lora:
            words.append("as a LoRA")
        if self.script == "train_ldm.py" and self.plan.condition != "text":
            by = {"class": "by class", "none": "without captions"}
            words.append(by.get(self.plan.condition, self.plan.condition))
        if self.plan.task != "draw":
            words.append(f"for {self.plan.task}")
        return " ".join(words)

    @property
    def seconds_left(self) -> float | None:
        """How long it will still take, if that is known."""
        if not self.rate or self.state == "finished":
            return None
        return max(self.plan.steps - self.step, 0) * self.plan.batch_size / self.rate

    @property
    def has_warning(self) -> bool:
        return any(is_warning(verdict) for _, verdict in self.verdicts)


def summarize_runs(root: Path) -> list[RunSummary]:
    """Summarize the runs in a folder: those that are trained first, then the newest."""
    found = [summarize_run(run, root) for run in find_runs(root)]
    return sorted(found, key=lambda run: (run.state != "running", -run.changed, run.name))


def summarize_run(run: Path, root: Path) -> RunSummary:
    """Summarize a run. root: the folder of runs, for its name."""
    file = run / "config.json"
    try:
        plan = from_json(PlannedSteps, read_json(file), file)
    except UserError:
        plan = PlannedSteps()
    lines = metrics_of(run)
    rates = [x for line in lines if isinstance(x := line.get("images_per_second"), int | float)]
    verdicts = [texts[-1] for texts in collect_verdicts(lines).values()]
    return RunSummary(
        run,
        run.relative_to(root).as_posix(),
        script_of(run) or "train_ldm.py",
        state_of(run),
        plan,
        step=int(lines[-1]["step"]) if lines else 0,
        rate=sum(rates[-RATES:]) / len(rates[-RATES:]) if rates else None,
        verdicts=sorted(verdicts, reverse=True),
        changed=max(map(time_of, (file, run / "metrics.jsonl", run / "history.jsonl"))),
    )


def state_of(run: Path) -> RunState:
    """Return whether a run is being trained, is finished, or neither."""
    if holder_of(run) is not None:
        return "running"
    event = last_event(run / "history.jsonl")
    is_finished = event is not None and event[1] == "finished" and (run / "model").is_dir()
    return "finished" if is_finished else "stopped"


def metrics_of(run: Path) -> Lines:
    """Read the metrics of a run, or return those that were read when the file was the same."""
    file = run / "metrics.jsonl"
    return read_again(file, time_of(file))


@lru_cache(METRICS)
def read_again(file: Path, changed: float) -> Lines:
    try:
        return read_metrics(file)
    except OSError:
        return []


def time_of(file: Path) -> float:
    """Return when a file was changed, in seconds since 1970; 0 if it is not there."""
    try:
        return file.stat().st_mtime
    except OSError:
        return 0.0


def compared_metrics(runs: Mapping[str, Path]) -> list[tuple[str, dict[str, Points]]]:
    """Return (metric, name of the run -> points) of all metrics that several runs have.

    runs: name -> folder; those beyond MOST_COMPARED are left out.
    """
    found: dict[str, dict[str, Points]] = {}
    for name, run in list(runs.items())[:MOST_COMPARED]:
        for metric, points in shown_metrics(metrics_of(run)).items():
            found.setdefault(metric, {})[name] = points
    return [(metric, lines) for metric, lines in found.items() if len(lines) > 1]


def preview_files(run: Path) -> list[Path]:
    """List the previews of a run in the order of their steps; links that lead outside are not."""
    inside = run.resolve() / "previews"
    found = sorted((run / "previews").glob("step-*.png"))
    return [file for file in found if file.resolve().parent == inside]
