"""Time of a call on a device, its memory, and a smaller batch where the memory does not suffice."""

import gc
import statistics
import time
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.gpu_parts.job import Job, is_out_of_memory
from training.acceleration import captured

SECONDS = 4.0  # for which a call is repeated
LEAST, MOST = 5, 40  # repeats
WARM_UP = captured.WARM_UP + 1  # calls, of which the last one records a CUDA graph


def seconds_per_call(call: Callable[[], object], job: Job, most: int = MOST) -> list[float]:
    """Return the seconds of each of several calls, after some that warm up.

    Calls follow each other without waiting, as in a training, and events on the device take the
    times.
    """
    for _ in range(0 if job.rehearse else WARM_UP):
        call()
    synchronize(job)
    started = time.perf_counter()
    call()
    synchronize(job)
    once = max(time.perf_counter() - started, 1e-6)
    count = 2 if job.rehearse else int(min(max(SECONDS / once, LEAST), most))
    if not job.on_gpu:
        return [host_seconds(call) for _ in range(count)]
    events = [torch.cuda.Event(enable_timing=True) for _ in range(count + 1)]
    events[0].record()
    for event in events[1:]:
        call()
        event.record()
    synchronize(job)
    return [a.elapsed_time(b) / 1e3 for a, b in pairwise(events)]


def host_seconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def synchronize(job: Job) -> None:
    if job.on_gpu:
        torch.cuda.synchronize()


def free_memory(job: Job) -> None:
    """Give back what earlier measurements left, and count the most memory anew."""
    gc.collect()
    if job.on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def measure_step(
    job: Job,
    name: str,
    prepare: Callable[[int], Callable[[], object]],
    batch_sizes: Sequence[int],
    tflop_per_image: float | None = None,
) -> int | None:
    """Record the speed and the memory of a step, at the first of these batch sizes that fits.

    Args:
        prepare: builds everything anew, and returns the step.
        tflop_per_image: of a step, in 10^12 operations.

    Returns:
        the batch size; None if none fits or the step fails.
    """
    too_large: list[int] = []
    for batch_size in batch_sizes:
        free_memory(job)
        started = time.perf_counter()
        try:
            step = prepare(batch_size)
            built = time.perf_counter() - started
            step()
            synchronize(job)
            first = time.perf_counter() - started - built
            seconds = seconds_per_call(step, job)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            too_large.append(batch_size)
            del error
            step = None
            continue
        median = statistics.median(seconds)
        record: dict[str, float | int | list[int] | None] = {
            "batch_size": batch_size,
            "milliseconds": 1e3 * median,
            "spread": (max(seconds) - min(seconds)) / median,
            "images_per_second": batch_size / median,
            "seconds_to_build": built,
            "seconds_of_first_step": first,
            "peak_gigabytes": torch.cuda.max_memory_allocated() / 1e9 if job.on_gpu else None,
        }
        if tflop_per_image is not None:
            record["tflops"] = tflop_per_image * batch_size / median
        if too_large:
            record["too_large"] = too_large
        job.record(name, **record)
        if job.on_gpu:
            with job.guarded(f"{name}, kernels"):
                job.record(f"{name}, kernels", milliseconds_of=kernels(step))
        return batch_size
    job.record(name, error=f"out of memory at every batch size of {list(batch_sizes)}")
    return None


def kernels(step: Callable[[], object], most: int = 40) -> list[tuple[str, float, int]]:
    """Return the kernels that take most of a step: name, milliseconds, number of calls.

    The first line is the sum of all.
    """
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        step()
        torch.cuda.synchronize()
    found = [
        (event.key[:140], event.self_device_time_total / 1e3, event.count)
        for event in profiler.key_averages()
    ]
    total = "all", sum(each[1] for each in found), sum(each[2] for each in found)
    return [total, *sorted(found, key=lambda each: -each[1])[:most]]


def run_once(
    job: Job, name: str, prepare: Callable[[int], Callable[[], object]], batch_size: int
) -> None:
    """Build a step and do it once; record how long that took."""
    started = time.perf_counter()
    prepare(batch_size)()
    synchronize(job)
    job.record(name, seconds=time.perf_counter() - started)


def count_tflop(run: Callable[[], torch.Tensor]) -> float:
    """Count the operations of products and convolutions, forward and backward, in 10^12.

    run: computes a loss on the meta device, where nothing is really computed.
    """
    with FlopCounterMode(display=False) as counter:
        run().backward()
    return counter.get_total_flops() / 1e12


@torch.no_grad()
def fill_zeros(module: nn.Module) -> None:
    """Set weights that begin at zero to small random numbers: products of zeros run faster."""
    for weight in module.parameters():
        if not weight.is_meta and weight.ndim > 1 and not weight.any():
            weight.normal_(std=0.02)
