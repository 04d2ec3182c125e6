"""The two limits of a device, matrix products and copies, and the group norm in channels_last."""

import platform
import statistics
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.gpu_parts.job import Job
from benchmarks.gpu_parts.stopwatch import seconds_per_call
from foundation.normalization import GroupNorm


def measure(job: Job) -> None:
    job.record("machine", **describe_machine(job))
    device = torch.device(job.device)
    with job.guarded("matmul"):
        side = 256 if job.rehearse else 8192
        seconds = statistics.median(seconds_per_call(make_product(device, side), job, most=60))
        job.record("matmul", side=side, tflops=2 * side**3 / seconds / 1e12)
    with job.guarded("copy"):
        count = 2**20 if job.rehearse else 2**30
        if job.on_gpu:
            free, _ = torch.cuda.mem_get_info()
            count = min(count, free // 16)
        seconds = statistics.median(seconds_per_call(make_copy(device, count), job, most=60))
        moved = 2 * 4 * count  # bytes of float32, read and written
        job.record("copy", gigabytes=moved / 1e9, terabytes_per_second=moved / seconds / 1e12)
    for name, kind in {"group_norm": GroupNorm, "group_norm of PyTorch": nn.GroupNorm}.items():
        with job.guarded(name):
            job.record(name, **measure_norm(job, kind(32, 320).to(device)))


def measure_norm(job: Job, norm: nn.GroupNorm) -> dict[str, Any]:
    """Measure norm, SiLU and their gradients on features of a U-Net, under autocast to bf16."""
    side, batch = (8, 2) if job.rehearse else (64, 16)
    image = torch.randn(batch, norm.num_channels, side, side, device=job.device).bfloat16()
    image = image.contiguous(memory_format=torch.channels_last).requires_grad_()
    upstream = torch.randn_like(image)

    def call() -> torch.Tensor:
        with torch.autocast(torch.device(job.device).type, torch.bfloat16):
            activated = F.silu(norm(image))
        activated.backward(upstream.to(activated.dtype))
        return activated

    is_kept = call().is_contiguous(memory_format=torch.channels_last)
    milliseconds = 1e3 * statistics.median(seconds_per_call(call, job))
    return {"keeps_channels_last": is_kept, "ms_with_silu_and_gradients": round(milliseconds, 3)}


def make_product(device: torch.device, side: int) -> Callable[[], object]:
    a, b = (torch.randn(side, side, device=device).bfloat16() for _ in range(2))
    return lambda: a @ b


def make_copy(device: torch.device, count: int) -> Callable[[], object]:
    source = torch.randn(count, device=device)
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def describe_machine(job: Job) -> dict[str, Any]:
    """Return what the measurements depend on."""
    facts: dict[str, Any] = {
        "device": job.device,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "threads": torch.get_num_threads(),
        "triton": version_of("triton"),
        "diffusers": version_of("diffusers"),
    }
    if job.on_gpu:
        properties = torch.cuda.get_device_properties(0)
        facts |= {
            "gpu": properties.name,
            "gigabytes": properties.total_memory / 1e9,
            "multiprocessors": properties.multi_processor_count,
            "capability": f"{properties.major}.{properties.minor}",
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "bf16": torch.cuda.is_bf16_supported(including_emulation=False),
        }
    return facts


def version_of(package: str) -> str | None:
    """Return the version of an installed package, or None."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return None
