"""The device that a program computes on, and its memory."""

import torch

from foundation.errors import UserError
from foundation.ranks import is_initialized, local_rank
from training.memory import format_bytes, peak_host_memory, total_host_memory


def pick_device(name: str) -> torch.device:
    """Return the device that `--device` names, after trying it.

    `auto` is the first accelerator there is, else the CPU. Where torchrun has started a process
    for each GPU of a machine, every process takes its own.

    Raises:
        UserError: the device cannot be used here.
    """
    if name == "auto":
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        name = accelerator.type if accelerator else "cpu"
    try:
        device = torch.device(name)
        if is_initialized() and device.type == "cuda":
            device = own_gpu(device)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError) as error:
        raise UserError(
            f"--device {name} cannot be used here ({str(error).splitlines()[0]}). "
            "Use --device cpu, or leave it out to take what is there."
        ) from error
    return device


def own_gpu(device: torch.device) -> torch.device:
    """Return the GPU of this process among those of its machine, and make it the current one."""
    if device.index is not None:
        raise UserError(
            f"--device {device} names one GPU, and torchrun has started a process for each. "
            "Use --device cuda; CUDA_VISIBLE_DEVICES says which GPUs there are."
        )
    if local_rank() >= torch.cuda.device_count():
        raise UserError(
            f"torchrun has started more processes on this machine than its "
            f"{torch.cuda.device_count()} GPUs. Lower --nproc-per-node to that."
        )
    torch.cuda.set_device(local_rank())
    return torch.device("cuda", local_rank())


def total_memory(device: torch.device) -> int | None:
    """Return the bytes of memory that a device has; None where the system does not say.

    Of a CPU it is the RAM, or what a container may use of it.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[1]
    if device.type == "mps":
        return torch.mps.recommended_max_memory()
    return total_host_memory()


def peak_device_memory() -> int | None:
    """Return the most bytes that tensors of this process took on a GPU; None without one."""
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None


def describe_peak_memory() -> str:
    """Return a text such as `memory 1.2 GB, GPU 5.3 GB`; "" where the system says nothing."""
    sizes = [("memory", peak_host_memory()), ("GPU", peak_device_memory())]
    return ", ".join(f"{name} {format_bytes(size)}" for name, size in sizes if size)
