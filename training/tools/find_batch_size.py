"""Find the batch size: it is doubled until it does not fit, or is no faster."""

import gc
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch

from training.device import describe_peak_memory
from training.memory import available_host_memory, format_bytes

LEAST_GAIN = 0.05  # in images per second, for which a doubled batch is worth it
LEAST_SECONDS = 2.0  # for which each size is timed
LEAST_STEPS = 3
MOST_SCATTER = 0.15  # of the median time of equal steps above the shortest
MOST_OF_OTHERS = 0.1  # of the processors' time
Step = Callable[[int], object]  # does optimizer step k


@dataclass(frozen=True)
class BatchSizeResult:
    """What `find_batch_size` measured.

    Args:
        rates: images per second by batch size.
        reason: why no larger size was tried.
        doubts: why the times may be wrong.
    """

    rates: dict[int, float]
    reason: str
    doubts: tuple[str, ...] = ()

    @property
    def best(self) -> int:
        """The smallest size that is as fast as any, up to LEAST_GAIN."""
        fast_enough = max(self.rates.values()) / (1 + LEAST_GAIN)
        return min(size for size, rate in self.rates.items() if rate >= fast_enough)

    def describe(self, batch_size: int, divides: bool = True) -> str:
        """Return a text with the flags to use.

        Args:
            batch_size: images per step of the command.
            divides: a batch can be computed in parts.
        """
        if not self.rates:
            return f"no batch size works here: {self.reason}."
        lines = [
            f"{self.reason}. Fastest: {self.rate_of(self.best)}. "
            + (self.in_parts(batch_size) if divides else self.whole(batch_size))
        ]
        if self.doubts:
            lines.append(
                f"these times are not reliable: {'; '.join(self.doubts)}. Measure again when "
                "nothing else runs."
            )
        return "\n".join(lines)

    def in_parts(self, batch_size: int) -> str:
        """Return the flags that keep the batch, with as many images at once as are fast."""
        at_once = max(k for k in range(1, self.best + 1) if batch_size % k == 0)
        return (
            f"To keep the {batch_size} images per step: --batch-size {batch_size} "
            f"--accumulate {batch_size // at_once}, {self.rate_of(at_once)}."
        )

    def whole(self, batch_size: int) -> str:
        """Return the flag where a batch cannot be divided."""
        text = f"Use --batch-size {self.best}; the recipe has {batch_size}."
        largest = max(self.rates)
        return text if batch_size <= largest else f"{text} More than {largest} did not work here."

    def rate_of(self, at_once: int) -> str:
        """Return a text with the measured speed of the largest size up to this one."""
        size = max((size for size in self.rates if size <= at_once), default=min(self.rates))
        return f"{at_once} at once, about {self.rates[size]:.4g} images/s"


def find_batch_size(
    prepare: Callable[[int], Step],
    *,
    device: torch.device,
    needed: Callable[[int], int],
    first: int = 1,
    most: int,
    report: Callable[[str], None] = print,
    clock: Callable[[], float] = time.perf_counter,
) -> BatchSizeResult:
    """Time training steps of `first` images, twice as many, and so on.

    Stops when the memory is full, when images per second rise by less than LEAST_GAIN, or at
    `most`.

    Args:
        prepare: returns a step for a batch size.
        needed: estimates the bytes that a step with a batch size needs. On a CPU, where running out
            of memory ends the process or the machine, a size that needs more than is free is not
            tried.
        report: prints a line per size.
        clock: returns a time in seconds.
    """
    watch, scattered = MachineWatch(), list[int]()
    rates: dict[int, float] = {}

    def result(reason: str) -> BatchSizeResult:
        return BatchSizeResult(rates, reason, (*describe_scatter(scattered), *watch.doubts()))

    size = first
    while size <= most:
        available = available_host_memory() if device.type == "cpu" else None
        if available is not None and needed(size) > available:
            room = f"about {format_bytes(needed(size))} of {format_bytes(available)} that are free"
            return result(f"a batch of {size} would need {room}")
        try:
            times = step_times(prepare(size), device, clock)
            rates[size] = size / statistics.median(times)
        except torch.OutOfMemoryError:
            return result(f"a batch of {size} does not fit into the memory")
        finally:
            if device.type == "cuda":  # so that one size leaves nothing to the next
                gc.collect()
                torch.cuda.empty_cache()
        if statistics.median(times) > (1 + MOST_SCATTER) * min(times):
            scattered.append(size)
        report(f"batch of {size}: {rates[size]:.4g} images/s, {describe_peak_memory()}")
        if size > first and rates[size] < (1 + LEAST_GAIN) * rates[size // 2]:
            return result(f"{size} images at once are no faster than {size // 2}")
        size *= 2
    return result(f"there are no more than {most} images")


def step_times(step: Step, device: torch.device, clock: Callable[[], float]) -> list[float]:
    """Time each of several steps, after a first one that allocates and compiles."""
    step(0)
    wait_for(device)
    times = [clock()]
    while len(times) <= LEAST_STEPS or times[-1] - times[0] < LEAST_SECONDS:
        step(len(times))
        wait_for(device)
        times.append(clock())
    return [after - before for before, after in pairwise(times)]


def wait_for(device: torch.device) -> None:
    """Wait until a GPU has done all its work."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


# Whether the times can be trusted.


def describe_scatter(sizes: Sequence[int]) -> list[str]:
    """Return a text if equal steps took different times, for batches of these sizes."""
    if not sizes:
        return []
    which = ", ".join(map(str, sizes))
    return [f"equal steps took times that differ by more than {MOST_SCATTER:.0%} (batch {which})"]


class MachineWatch:
    """Notices whether other programs use the processors, from when it is made."""

    def __init__(self) -> None:
        self.busy, self.own, self.began = busy_seconds(), own_seconds(), time.perf_counter()

    def doubts(self) -> list[str]:
        """Return a text if they did; nothing where the system does not say."""
        now, cores = busy_seconds(), os.cpu_count() or 1
        if now is None or self.busy is None:
            return []
        passed = max(time.perf_counter() - self.began, 1e-9)
        others = (now - self.busy - (own_seconds() - self.own)) / passed
        if others <= MOST_OF_OTHERS * cores:
            return []
        return [f"other programs used {others:.1f} of {cores} processor cores meanwhile"]


def busy_seconds() -> float | None:
    """Return the time for which all cores have worked since the system began, if /proc says it."""
    try:
        with open("/proc/stat") as file:
            user, nice, system = map(int, file.readline().split()[1:4])
        ticks: Callable[[str], int] = getattr(os, "sysconf")  # noqa: B009 (Windows has none)
        return (user + nice + system) / ticks("SC_CLK_TCK")
    except (AttributeError, OSError, ValueError):
        return None


def own_seconds() -> float:
    """Return the processor time of this process and of those that it has ended."""
    return sum(os.times()[:4])
