"""Find the batch size: it is doubled until it does not fit, or is no faster."""

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from training.memory import available_host_memory, describe_peak_memory, format_bytes

LEAST_GAIN = 0.05  # in images per second, for which a doubled batch is worth it
LEAST_SECONDS = 2.0  # for which each size is timed
Step = Callable[[int], object]  # does optimizer step k


@dataclass(frozen=True)
class BatchSizeResult:
    """What `find_batch_size` measured."""

    rates: dict[int, float]  # images per second by batch size
    reason: str  # why no larger size was tried

    @property
    def best(self) -> int:
        """The smallest size that is as fast as any, up to LEAST_GAIN."""
        fast_enough = max(self.rates.values()) / (1 + LEAST_GAIN)
        return min(size for size, rate in self.rates.items() if rate >= fast_enough)

    def describe(self, current: int) -> str:
        """Return a text with the best size. current: the batch size of the command."""
        if not self.rates:
            return f"no batch size works here: {self.reason}."
        text = (
            f"{self.reason}. The smallest that is as fast as any: --batch-size {self.best}. "
            f"The recipe has {current}. More images per step teach more per step, but less per "
            "image."
        )
        largest = max(self.rates)
        return text if current <= largest else f"{text} Larger than {largest} did not work here."


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
    rates: dict[int, float] = {}
    size = first
    while size <= most:
        available = available_host_memory() if device.type == "cpu" else None
        if available is not None and needed(size) > available:
            room = f"about {format_bytes(needed(size))} of {format_bytes(available)} that are free"
            return BatchSizeResult(rates, f"a batch of {size} would need {room}")
        try:
            rates[size] = size * steps_per_second(prepare(size), device, clock)
        except torch.OutOfMemoryError:
            return BatchSizeResult(rates, f"a batch of {size} does not fit into the memory")
        finally:
            if device.type == "cuda":  # so that one size leaves nothing to the next
                gc.collect()
                torch.cuda.empty_cache()
        report(f"batch of {size}: {rates[size]:.4g} images/s, {describe_peak_memory()}")
        if size > first and rates[size] < (1 + LEAST_GAIN) * rates[size // 2]:
            return BatchSizeResult(rates, f"{size} images at once are no faster than {size // 2}")
        size *= 2
    return BatchSizeResult(rates, f"there are no more than {most} images")


def steps_per_second(step: Step, device: torch.device, clock: Callable[[], float]) -> float:
    """Time steps, after a first one that allocates and compiles."""
    step(0)
    wait_for(device)
    started, count = clock(), 0
    while count < 2 or clock() - started < LEAST_SECONDS:
        count += 1
        step(count)
        wait_for(device)
    return count / (clock() - started)


def wait_for(device: torch.device) -> None:
    """Wait until a GPU has done all its work."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
