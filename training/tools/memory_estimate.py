"""Estimate of the memory that a training step needs, before the training begins."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode  # what torch.compile rests on
from torch.autograd.graph import saved_tensors_hooks

from training.memory import format_bytes

GIB = 2**30
GPUS = (8, 12, 16, 24, 40, 48, 80)  # GiB of memory that GPUs have
RESERVE = 1.5 * GIB  # the CUDA context and buffers of kernels
USABLE = 0.95  # the rest is lost between blocks of other sizes


@dataclass(frozen=True, kw_only=True)
class MemoryEstimate:
    """Bytes of a training step, by purpose."""

    weights: int
    gradients: int
    optimizer: int  # two moments per trained weight, as Adam has
    averages: int  # EMA, and power-function averages if they are stored
    constant: int  # saved for the backward pass at any batch size, such as weights cast to bf16
    per_image: int  # saved for the backward pass, per image
    batch_size: int

    @property
    def activations(self) -> int:
        return self.constant + self.per_image * self.batch_size

    @property
    def total(self) -> int:
        fixed = self.weights + self.gradients + self.optimizer + self.averages
        return fixed + self.activations

    def describe(self) -> str:
        """Return the total, what it consists of, and which GPU suffices, in two lines."""
        names = ("weights", "gradients", "optimizer", "averages", "activations")
        items = ", ".join(f"{name} {format_bytes(getattr(self, name))}" for name in names)
        return (
            f"memory of a step: about {format_bytes(self.total)} ({items})\n{self.describe_gpu()}"
        )

    def describe_gpu(self) -> str:
        """Return which GPU suffices."""
        needed = self.total + RESERVE
        fits = [size for size in GPUS if size * GIB * USABLE >= needed]
        if fits:
            return f"it fits on a GPU of {fits[0]} GB, if nothing else runs there."
        return (
            f"it does not fit on a GPU of {GPUS[-1]} GB. Use a larger --accumulate or a smaller "
            "--batch-size."
        )


def estimate_memory(
    trained: Iterable[nn.Module],
    frozen: Iterable[nn.Module],
    forward: Callable[[int], Any],
    *,
    batch_size: int,
    averaged: int,
) -> MemoryEstimate:
    """Estimate the memory of a training step without computing anything.

    The forward pass runs on fake tensors, which have no data, with 2 and with 3 images; from these
    follows what any batch size needs. The total is what would be alive if all gradients came before
    any activation was freed, so it is high by a part of the gradients. Buffers of the kernels, and
    the program itself, come on top.

    Args:
        trained: modules with gradients and Adam moments.
        frozen: modules with weights alone.
        forward: computes the loss of a batch of so many images.
        averaged: bytes of averages of weights, which are float32.
    """
    trained_size = tensor_bytes(weight for module in trained for weight in module.parameters())
    frozen_size = tensor_bytes(weight for module in frozen for weight in module.parameters())
    with_two = saved_for_backward(lambda: forward(2))
    with_three = saved_for_backward(lambda: forward(3))
    return MemoryEstimate(
        weights=trained_size + frozen_size,
        gradients=trained_size,
        optimizer=2 * trained_size,
        averages=averaged,
        constant=max(3 * with_two - 2 * with_three, 0),
        per_image=with_three - with_two,
        batch_size=batch_size,
    )


def tensor_bytes(tensors: Iterable[Tensor]) -> int:
    """Return the size of some tensors together."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def saved_for_backward(forward: Callable[[], Any]) -> int:
    """Return the bytes that autograd saves in a forward pass, without the weights."""
    saved: dict[int, Tensor] = {}  # by storage, so that each one counts once

    def save(tensor: Tensor) -> Tensor:
        base = tensor if tensor._base is None else tensor._base  # a transposed weight is a weight
        if not (base.is_leaf and base.requires_grad):
            saved.setdefault(tensor.untyped_storage()._cdata, tensor)
        return tensor

    with FakeTensorMode(allow_non_fake_inputs=True), saved_tensors_hooks(save, lambda x: x):
        result = forward()  # holds the graph, so no storage is freed and counted twice
        del result
    return sum(tensor.untyped_storage().nbytes() for tensor in saved.values())
