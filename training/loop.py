"""The loop: counts optimizer steps, shows progress, saves state, and stops cleanly when asked."""

import signal
import time
from collections.abc import Callable, Iterable
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from tqdm import tqdm

from training.metrics import Averages, MetricsFile
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
    look: Callable[[int], dict[str, float]],
    title: str,
) -> None:
    """Runs `step(0) ... step(steps - 1)`, resuming from the run's newest state.

    Args:
        parts: name -> object with `state_dict` and `load_state_dict`: all that must survive.
        step: does one optimizer step; returns 0-dim tensors, which are averaged without a sync.
        look: after `look_every` steps and at the end: writes pictures and returns numbers.

    Raises:
        KeyboardInterrupt: asked to stop by a signal; the state is saved first.
    """
    averages = Averages()
    parts = {**parts, "averages": averages}
    first = run.resume(parts)
    with (
        closing(MetricsFile(run.path, first)) as metrics,
        closing(ProgressBar(title, first, plan)) as bar,
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
                numbers = look(done)
                metrics.write(done, numbers)
                bar.line(done, numbers)
            if last or done % plan.save_every == 0 or stop.requested:
                run.save(done, parts)
            if stop.requested and not last:
                raise KeyboardInterrupt(
                    f"stopped after step {done}; state saved in {run.states}. "
                    "Run the same command again to go on."
                )


class ProgressBar:
    """One line with images per second and time left; other lines scroll above it."""

    def __init__(self, title: str, first: int, plan: Plan):
        self.images_per_step = plan.images_per_step
        self.bar = tqdm(
            total=plan.steps * plan.images_per_step,
            initial=first * plan.images_per_step,
            desc=title,
            unit=" images",
            unit_scale=True,
            dynamic_ncols=True,
            mininterval=1.0,
        )
        self.marked, self.images = time.monotonic(), 0

    def advance(self) -> None:
        self.images += self.images_per_step
        self.bar.update(self.images_per_step)

    def rate(self) -> float:
        """Images per second since the last call."""
        now = time.monotonic()
        rate = self.images / max(now - self.marked, 1e-9)
        self.marked, self.images = now, 0
        return rate

    def show(self, means: dict[str, float]) -> None:
        self.bar.set_postfix_str(" ".join(f"{k} {v:.3g}" for k, v in means.items()), refresh=False)

    def line(self, step: int, numbers: dict[str, float]) -> None:
        if numbers:
            text = "  ".join(f"{name} {value:.4g}" for name, value in numbers.items())
            say(f"step {step}: {text}")

    def close(self) -> None:
        self.bar.close()


def progress_bar(items: Iterable, title: str, total: int) -> Iterable:
    """A bar around anything that takes long besides the steps."""
    return tqdm(items, desc=title, total=total, dynamic_ncols=True, mininterval=1.0)


def say(text: str) -> None:
    """A line above the progress bar."""
    tqdm.write(text)


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
