"""Memory: what a process uses, and what a training will need, before it begins."""

import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode  # what torch.compile rests on
from torch.autograd.graph import saved_tensors_hooks


def host_peak() -> int | None:
    """Bytes of RAM that this process had at most; None where the system does not say."""
    try:
        import resource
    except ModuleNotFoundError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def host_available() -> int | None:
    """Bytes of RAM that could still be had without swapping; None where /proc does not say."""
    try:
        with open("/proc/meminfo") as file:
            lines = dict(line.split(":") for line in file)
        return int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError):
        return None


def device_peak() -> int | None:
    """Bytes of tensors that an accelerator held at most for this process; None without one."""
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None


def memory_in_words() -> str:
    """Such as `memory 1.2 GB, GPU 5.3 GB`."""
    parts = [("memory", host_peak()), ("GPU", device_peak())]
    return ", ".join(f"{name} {in_words(size)}" for name, size in parts if size)


def in_words(size: float) -> str:
    """Of bytes: 350 MB, 1.2 GB."""
    return f"{size / 1e9:.3g} GB" if size >= 1e9 else f"{size / 1e6:.3g} MB"


@dataclass(frozen=True, kw_only=True)
class MemoryEstimate:
    """Bytes of a training step, by what they are for. Their sum is `total`."""

    weights: int
    gradients: int
    optimizer: int  # two moments per trained weight, as Adam has
    averages: int  # EMA, and power-function averages if they are stored
    constant: int  # kept for the backward pass whatever the batch, as weights in bf16
    per_image: int  # kept for the backward pass, per image
    batch_size: int

    @property
    def activations(self) -> int:
        return self.constant + self.per_image * self.batch_size

    @property
    def total(self) -> int:
        fixed = self.weights + self.gradients + self.optimizer + self.averages
        return fixed + self.activations

    def describe(self) -> str:
        parts = ("weights", "gradients", "optimizer", "averages", "activations")
        named = ", ".join(f"{name} {in_words(getattr(self, name))}" for name in parts)
        return f"memory of a step: about {in_words(self.total)} ({named})"


def estimate(
    trained: Iterable[nn.Module],
    frozen: Iterable[nn.Module],
    forward: Callable[[int], Any],
    *,
    batch_size: int,
    averaged: int,
) -> MemoryEstimate:
    """Without computing anything: the forward pass runs once on tensors that have no data.

    The sum is what would be alive at once if all gradients came before any activation went, so it
    is high by a part of the gradients. Buffers of the kernels, and the program itself, come on top.

    Args:
        trained: modules with gradients and Adam moments.
        frozen: modules with weights alone.
        forward: of a batch of so many images, to the loss.
        averaged: bytes of averages of weights, which are float32.
    """
    trained, frozen = list(trained), list(frozen)
    learned = size_of(weight for module in trained for weight in module.parameters())
    known = size_of(weight for module in frozen for weight in module.parameters())
    two, three = (saved_for_backward(lambda k=k: forward(k)) for k in (2, 3))
    return MemoryEstimate(
        weights=learned + known,
        gradients=learned,
        optimizer=2 * learned,
        averages=averaged,
        constant=max(3 * two - 2 * three, 0),
        per_image=three - two,
        batch_size=batch_size,
    )


def size_of(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def saved_for_backward(forward: Callable[[], Any]) -> int:
    """Bytes that autograd keeps of a forward pass, each storage once, weights left out."""
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        whole = tensor if tensor._base is None else tensor._base  # a transposed weight is a weight
        if not (whole.is_leaf and whole.requires_grad):
            kept.setdefault(tensor.untyped_storage()._cdata, tensor)
        return tensor

    with FakeTensorMode(allow_non_fake_inputs=True), saved_tensors_hooks(keep, lambda x: x):
        result = forward()  # holds the graph, so no storage is freed and counted twice
        del result
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
