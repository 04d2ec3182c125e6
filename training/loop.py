"""The loop: counts optimizer steps, shows progress, saves state, and stops cleanly when asked."""

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from foundation import collectives
from foundation.errors import UserError
from training.logging.loggers import open_boards
from training.logging.metrics import Averages, MetricsFile, NoMetricsFile
from training.logging.progress import ProgressBar, say
from training.run import Run
from training.signals import stop_requests
from training.skips import Skips, diverged
from training.watchdog import Watch, finished, phase

Metrics = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How long to train and how often to stop and look. All in optimizer steps."""

    steps: int
    images_per_step: int
    save_every: int
    look_every: int  # previews and validation
    log_every: int = 20
    rank_timeout: float = Watch.patience  # seconds, of steps and looks

    def __post_init__(self):
        for name in ("steps", "images_per_step", "save_every", "look_every", "log_every"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, got {getattr(self, name)}.")


def train(
    run: Run,
    plan: Plan,
    parts: dict[str, Any],
    step: Callable[[int], Metrics],
    look: Callable[[int], dict[str, float | str]],
    title: str,
) -> None:
    """Runs `step(0) ... step(steps - 1)`, resuming from the run's newest state.

    Args:
        parts: name -> object with `state_dict` and `load_state_dict`: all that must survive.
        step: does one optimizer step; returns 0-dim tensors, which are averaged without a sync, and
            under `taken` 1, or 0 if the step was left out (training/update.py).
        look: after `look_every` steps and at the end: writes pictures and returns numbers, and
            verdicts in words.

    Raises:
        KeyboardInterrupt: asked to stop by a signal; the state is saved first.
        FloatingPointError: nothing finite comes any more; the state is saved, too.
    """
    averages, skips = Averages(), Skips()
    parts = {**parts, "averages": averages, "skips": skips}
    phase("reading the state")
    first = run.resume(parts)
    Watch.patience = plan.rank_timeout
    with (
        closing(open_metrics(run, first)) as metrics,
        closing(ProgressBar(title, first, plan.steps, plan.images_per_step)) as bar,
        stop_requests() as stop,
    ):
        for done in range(first + 1, plan.steps + 1):
            phase("beginning", step=done, limited=True)
            numbers = step(done - 1)
            skips.add(numbers.pop("taken"))
            averages.add(numbers)
            bar.advance()
            last, reason = done == plan.steps, None
            if last or done % plan.log_every == 0:
                reason = write_means(done, averages, skips, metrics, bar)
            if last or done % plan.look_every == 0:
                phase("looking")
                seen = look(done)
                metrics.write(done, seen)
                bar.line(done, seen)
                if run.preview(done).exists():
                    metrics.picture(done, "preview", run.preview(done))
            reason = reason or stop.reason(done)  # read once: a later signal waits for a step more
            if last or reason or done % plan.save_every == 0:
                phase("saving the state")
                metrics.sync()
                run.save(done, parts)
            if reason:
                finished()
                raise reason
    phase("writing the model", limited=False)


def write_means(
    done: int, averages: Averages, skips: Skips, metrics: MetricsFile, bar: ProgressBar
) -> FloatingPointError | None:
    """Writes and shows what was averaged since the last time. Returns why the run must stop."""
    means, (skipped, new, hopeless) = averages.pop(), skips.check()
    metrics.write(done, {**means, "skipped_steps": skipped, "images_per_second": bar.rate()})
    bar.show(means)
    if new:
        say(
            f"step {done}: since the last line {new} steps were left out, because their loss or "
            f"gradient was not finite ({skipped} so far)."
        )
    return FloatingPointError(diverged(done, skipped)) if hopeless else None


def open_metrics(run: Run, first: int) -> MetricsFile | NoMetricsFile:
    if collectives.rank():
        return NoMetricsFile()
    return MetricsFile(run.path, first, open_boards(run.path, first, run.config))
