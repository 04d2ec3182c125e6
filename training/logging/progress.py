"""Progress of what takes long: a bar in a terminal, and a line every half minute in a log file.

A bar would leave thousands of lines in a log file. Colors, and the course of the loss as small
bars, are only where the terminal has them.
"""

import math
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TypeVar

from tqdm import tqdm

from foundation import collectives
from training.device import describe_peak_memory

LINE_INTERVAL = 30.0  # seconds between lines, where there is no terminal
COLOR = "green"  # of bars
SPARKS = "▁▂▃▄▅▆▇█"
SHOWN_LOSSES = 16  # the last ones, in the sparkline of a training

T = TypeVar("T")


class TrainingProgress:
    """Images per second, time left and memory of a training."""

    def __init__(self, title: str, first: int, steps: int, images_per_step: int):
        """Show the bar.

        Args:
            first: steps done before, from which the run resumes.
            steps: at which it will end.
        """
        self.title, self.first, self.step, self.steps = title, first, first, steps
        self.images_per_step = images_per_step
        self.started = self.last_line = self.rate_started = time.monotonic()
        self.images = 0  # since `rate_started`
        self.losses: deque[float] = deque(maxlen=SHOWN_LOSSES)
        self.bar = tqdm(
            total=steps * images_per_step,
            initial=first * images_per_step,
            desc=title,
            unit=" images",
            unit_scale=True,
            dynamic_ncols=True,
            mininterval=1.0,
            colour=bar_color(),
            disable=not in_terminal() or collectives.rank() > 0,
        )

    def advance(self) -> None:
        """Count one optimizer step."""
        self.step += 1
        self.images += self.images_per_step
        self.bar.update(self.images_per_step)

    def rate(self) -> float:
        """Return the images per second since the last call."""
        now = time.monotonic()
        rate = self.images / max(now - self.rate_started, 1e-9)
        self.rate_started, self.images = now, 0
        return rate

    def show(self, metrics: Mapping[str, float]) -> None:
        """Show metrics in the bar; without a terminal as a line, if the last one is old enough.

        The bar also has the course of the first of them, the loss.
        """
        self.losses.extend(list(metrics.values())[:1])
        numbers = " ".join(f"{name} {value:.3g}" for name, value in metrics.items())
        memory = describe_peak_memory()
        course = sparkline(self.losses) if can_print(SPARKS) else ""
        shown = f"{course} {numbers}".strip()
        self.bar.set_postfix_str(f"{shown}, {memory}" if memory else shown, refresh=False)
        now = time.monotonic()
        if collectives.rank() or not self.bar.disable:
            return
        if now - self.last_line >= LINE_INTERVAL or self.step == self.steps:
            self.last_line = now
            per_step = (now - self.started) / max(self.step - self.first, 1)
            print_to_log(
                f"{self.title}: step {self.step} of {self.steps}, "
                f"{self.images_per_step / max(per_step, 1e-9):.3g} images/s, "
                f"{format_duration((self.steps - self.step) * per_step)} left, "
                + (f"{memory}, {numbers}" if memory else numbers)
            )

    def print_results(self, step: int, results: Mapping[str, float | str]) -> None:
        """Print what an evaluation returned: numbers in one line, each text in its own line."""
        numbers = {name: value for name, value in results.items() if not isinstance(value, str)}
        if numbers:
            text = "  ".join(f"{name} {value:.4g}" for name, value in numbers.items())
            print_line(f"step {step}: {text}")
        for name, value in results.items():
            if name not in numbers:
                print_line(f"step {step}: {value}")

    def close(self) -> None:
        self.bar.close()


def progress_bar(items: Iterable[T], title: str, total: int) -> Iterable[T]:
    """Pass items through and show how many of `total` are done; on rank 0 only."""
    if collectives.rank():
        return items
    if in_terminal():
        return tqdm(*(items, title, total), dynamic_ncols=True, mininterval=1.0, colour=bar_color())
    return progress_lines(items, title, total)


def progress_lines(items: Iterable[T], title: str, total: int) -> Iterator[T]:
    """Pass items through and print a line every half minute; none if it takes less."""
    started = last_line = time.monotonic()
    for done, item in enumerate(items):
        now = time.monotonic()
        if now - last_line >= LINE_INTERVAL:
            last_line = now
            left = (now - started) / max(done, 1) * (total - done)
            print_to_log(f"{title}: {done} of {total}, {format_duration(left)} left")
        yield item


def counted(items: Iterable[T], title: str) -> Iterator[T]:
    """Pass items of unknown number through, and print a line every half minute."""
    last_line = time.monotonic()
    for done, item in enumerate(items):
        if not done % 1000 and (now := time.monotonic()) - last_line >= LINE_INTERVAL:
            last_line = now
            print_to_log(f"{title}: {done} so far")
        yield item


@contextmanager
def progress_counter(title: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
    """Yield `update(n)`; call it after n more units of work.

    unit: the plural of what is counted, such as "image steps".
    """
    if in_terminal():
        with tqdm(
            total=total, desc=title, unit=f" {unit}", dynamic_ncols=True, colour=bar_color()
        ) as bar:

            def advance(count: int) -> None:
                bar.update(count)

            yield advance
        return
    started = last_line = time.monotonic()
    done = 0

    def update(count: int) -> None:
        nonlocal done, last_line
        done += count
        now = time.monotonic()
        if now - last_line >= LINE_INTERVAL:
            last_line, rate = now, done / (now - started)
            print_to_log(
                f"{title}: {done} of {total} {unit}, {rate:.3g} per second, "
                f"{format_duration((total - done) / rate)} left"
            )

    yield update


def in_terminal() -> bool:
    """Return whether somebody watches stderr, in a terminal that can go back in a line."""
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb"


def bar_color() -> str | None:
    """Return the color of bars; None where there are none, or where nobody wants them."""
    return COLOR if in_terminal() and not os.environ.get("NO_COLOR") else None


def can_print(text: str) -> bool:
    """Return whether the encoding of stderr has these characters."""
    try:
        text.encode(getattr(sys.stderr, "encoding", None) or "utf-8")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def sparkline(values: Sequence[float]) -> str:
    """Return numbers as bars of eight heights, the smallest and the largest at the ends.

    What is not finite is a gap; fewer than two numbers have no course.
    """
    finite = [value for value in values if math.isfinite(value)]
    if len(finite) < 2:
        return ""
    low, span = min(finite), max(finite) - min(finite)
    top = len(SPARKS) - 1
    return "".join(
        SPARKS[round(top * (value - low) / span) if span else 0] if math.isfinite(value) else " "
        for value in values
    )


def print_line(text: str) -> None:
    """Print a line to stdout, above the progress bar if there is one."""
    tqdm.write(text)


def print_to_log(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def format_duration(seconds: float) -> str:
    """Return a time as text: 45 s, 3:20 min or 5:07 h."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60}:{seconds % 60:02d} min"
    return f"{seconds // 3600}:{seconds // 60 % 60:02d} h"
