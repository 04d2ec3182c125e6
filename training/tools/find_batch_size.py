"""Which batch size fits and pays: doubled until it does neither."""

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from training.memory import available_host_memory, describe_peak_memory, format_bytes

LEAST_GAIN = 0.05  # in images per second, for which a doubled batch is worth it
SECONDS = 2.0  # that each size is timed at least
Step = Callable[[int], Any]  # does optimizer step k


@dataclass(frozen=True)
class Found:
    """Images per second by batch size, and why no larger one was tried."""

    rates: dict[int, float]
    stopped: str

    @property
    def best(self) -> int:
        """The smallest that is as fast as any, up to LEAST_GAIN."""
        enough = max(self.rates.values()) / (1 + LEAST_GAIN)
        return min(size for size, rate in self.rates.items() if rate >= enough)

    def describe(self, given: int) -> str:
        """given: the batch size of the recipe."""
        if not self.rates:
            return f"no batch size works here: {self.stopped}."
        text = (
            f"{self.stopped}. The smallest that is as fast as any: --batch-size {self.best}. "
            f"The recipe has {given}. More images per step teach more per step, but less per image."
        )
        largest = max(self.rates)
        return text if given <= largest else f"{text} Larger than {largest} did not work here."


def find_batch_size(
    prepare: Callable[[int], Step],
    *,
    device: torch.device,
    needed: Callable[[int], int],
    first: int = 1,
    most: int,
    say: Callable[[str], None] = print,
    clock: Callable[[], float] = time.perf_counter,
) -> Found:
    """Times steps of `first`, twice as many, ... images.

    Stops when memory ends, when images per second rise by less than LEAST_GAIN, or at `most`.

    Args:
        prepare: gives a step that is ready to run on a batch of that size.
        needed: bytes that a step is estimated to need. On a CPU, where running out of memory ends
            the process or the machine, a size is not tried if there is less.
    """
    rates: dict[int, float] = {}
    size = first
    while size <= most:
        available = available_host_memory() if device.type == "cpu" else None
        if available is not None and needed(size) > available:
            room = f"about {format_bytes(needed(size))} of {format_bytes(available)} that are free"
            return Found(rates, f"a batch of {size} would need {room}")
        try:
            rates[size] = size * steps_per_second(prepare(size), device, clock)
        except torch.OutOfMemoryError:
            return Found(rates, f"a batch of {size} does not fit into the memory")
        finally:
            if device.type == "cuda":  # so that one size leaves nothing to the next
                gc.collect()
                torch.cuda.empty_cache()
        say(f"batch of {size}: {rates[size]:.4g} images/s, {describe_peak_memory()}")
        if size > first and rates[size] < (1 + LEAST_GAIN) * rates[size // 2]:
            return Found(rates, f"{size} images at once are no faster than {size // 2}")
        size *= 2
    return Found(rates, f"there are no more than {most} images")


def steps_per_second(step: Step, device: torch.device, clock: Callable[[], float]) -> float:
    """After one that is not timed, which allocates and compiles."""
    step(0)
    wait_for(device)
    begun, done = clock(), 0
    while done < 2 or clock() - begun < SECONDS:
        done += 1
        step(done)
        wait_for(device)
    return done / (clock() - begun)


def wait_for(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
