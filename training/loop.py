"""The loop: counts optimizer steps, shows progress, saves state, and stops cleanly when asked."""

import signal
from collections.abc import Callable
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from training.boards import open_boards
from training.metrics import Averages, MetricsFile
from training.progress import ProgressBar
from training.run import Run

Metrics = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How long to train and how often to stop and look. All in optimizer steps."""

    steps: int
    images_per_step: int
    save_every: int
    look_every: int  # previews and validation
    log_every: int = 20

    def __post_init__(self):
        for name in ("steps", "images_per_step", "save_every", "look_every", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")


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
        step: does one optimizer step; returns 0-dim tensors, which are averaged without a sync.
        look: after `look_every` steps and at the end: writes pictures and returns numbers, and
            verdicts in words.

    Raises:
        KeyboardInterrupt: asked to stop by a signal; the state is saved first.
    """
    averages = Averages()
    parts = {**parts, "averages": averages}
    first = run.resume(parts)
    with (
        closing(MetricsFile(run.path, first, open_boards(run.path, first, run.config))) as metrics,
        closing(ProgressBar(title, first, plan.steps, plan.images_per_step)) as bar,
        stop_requests() as stop,
    ):
        for done in range(first + 1, plan.steps + 1):
            averages.add(step(done - 1))
            bar.advance()
            last = done == plan.steps
            if last or done % plan.log_every == 0:
                means = averages.pop()
                metrics.write(done, {**means, "images_per_second": bar.rate()})
                bar.show(means)
            if last or done % plan.look_every == 0:
                seen = look(done)
                metrics.write(done, seen)
                bar.line(done, seen)
                if run.preview(done).exists():
                    metrics.picture(done, "preview", run.preview(done))
            if last or done % plan.save_every == 0 or stop.requested:
                run.save(done, parts)
            if stop.requested and not last:
                raise KeyboardInterrupt(
                    f"stopped after step {done}; state saved in {run.states}. "
                    "Run the same command again to go on."
                )


class StopRequest:
    requested = False


@contextmanager
def stop_requests():
    """SIGINT and SIGTERM ask for a stop after the current step; the second one stops at once."""
    stop = StopRequest()

    def ask(number: int, frame: object) -> None:
        if stop.requested:
            raise KeyboardInterrupt("stopped at once, without saving.")
        stop.requested = True

    previous = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
