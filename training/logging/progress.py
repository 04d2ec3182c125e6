"""What one sees while something takes long: a bar in a terminal, a line now and then elsewhere."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from tqdm import tqdm

from foundation import collectives
from training.tools.memory_estimate import memory_in_words

QUIET = 30.0  # seconds between lines, where there is no terminal


class ProgressBar:
    """Images per second, time left and memory of a training.

    In a terminal one line, above which others scroll. In a log file, where a bar would leave
    thousands of lines, a line of its own every half minute.
    """

    def __init__(self, title: str, first: int, steps: int, images_per_step: int):
        self.title, self.step, self.steps = title, first, steps
        self.images_per_step = images_per_step
        self.numbers = ""
        self.marked, self.images = time.monotonic(), 0
        self.begun = self.spoken = time.monotonic()
        self.first = first
        self.bar = tqdm(
            total=steps * images_per_step,
            initial=first * images_per_step,
            desc=title,
            unit=" images",
            unit_scale=True,
            dynamic_ncols=True,
            mininterval=1.0,
            disable=not in_terminal() or collectives.rank() > 0,
        )

    def advance(self) -> None:
        self.step += 1
        self.images += self.images_per_step
        self.bar.update(self.images_per_step)

    def rate(self) -> float:
        """Images per second since the last call."""
        now = time.monotonic()
        rate = self.images / max(now - self.marked, 1e-9)
        self.marked, self.images = now, 0
        return rate

    def show(self, means: dict[str, float]) -> None:
        """Called every few steps with what was measured over them."""
        numbers = " ".join(f"{name} {value:.3g}" for name, value in means.items())
        self.bar.set_postfix_str(f"{numbers}, {memory_in_words()}", refresh=False)
        now = time.monotonic()
        if collectives.rank():
            return
        if self.bar.disable and (now - self.spoken >= QUIET or self.step == self.steps):
            self.spoken = now
            per_step = (now - self.begun) / max(self.step - self.first, 1)
            print(
                f"{self.title}: step {self.step} of {self.steps}, "
                f"{self.images_per_step / max(per_step, 1e-9):.3g} images/s, "
                f"{duration((self.steps - self.step) * per_step)} left, {memory_in_words()}, "
                f"{numbers}",
                file=sys.stderr,
                flush=True,
            )

    def line(self, step: int, seen: dict[str, float | str]) -> None:
        """What a look gave: numbers in one line, words in a line each."""
        numbers = {name: value for name, value in seen.items() if not isinstance(value, str)}
        if numbers:
            text = "  ".join(f"{name} {value:.4g}" for name, value in numbers.items())
            say(f"step {step}: {text}")
        for name in seen.keys() - numbers.keys():
            say(f"step {step}: {seen[name]}")

    def close(self) -> None:
        self.bar.close()


def in_terminal() -> bool:
    return sys.stderr.isatty()


def progress_bar(items: Iterable, title: str, total: int) -> Iterable:
    """The same around anything that takes long besides the steps."""
    if collectives.rank():
        return items
    if in_terminal():
        return tqdm(items, desc=title, total=total, dynamic_ncols=True, mininterval=1.0)
    return told(items, title, total)


def told(items: Iterable, title: str, total: int) -> Iterator:
    """Passes the items through, and prints a line every half minute; none if it takes less."""
    begun = spoken = time.monotonic()
    for done, item in enumerate(items):
        now = time.monotonic()
        if now - spoken >= QUIET:
            spoken = now
            left = (now - begun) / max(done, 1) * (total - done)
            print(f"{title}: {done} of {total}, {duration(left)} left", file=sys.stderr, flush=True)
        yield item


@contextmanager
def counting(title: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
    """And where what takes long itself says how much more of it is done: by the call given here."""
    if in_terminal():
        with tqdm(total=total, desc=title, unit=f" {unit}", dynamic_ncols=True) as bar:
            yield bar.update
        return
    begun = spoken = time.monotonic()
    done = 0

    def count(more: int) -> None:
        nonlocal done, spoken
        done, now = done + more, time.monotonic()
        if now - spoken >= QUIET:
            spoken, rate = now, done / (now - begun)
            print(
                f"{title}: {done} of {total} {unit}, {rate:.3g} per second, "
                f"{duration((total - done) / rate)} left",
                file=sys.stderr,
                flush=True,
            )

    yield count


def say(text: str) -> None:
    """A line above the progress bar."""
    tqdm.write(text)


def duration(seconds: float) -> str:
    """As 45 s, 3:20 min or 5:07 h."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60}:{seconds % 60:02d} min"
    return f"{seconds // 3600}:{seconds // 60 % 60:02d} h"
