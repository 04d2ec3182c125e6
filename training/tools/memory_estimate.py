"""Estimate of the memory that a training step needs, before the training begins.

Forward and backward pass run once on tensors that have a shape but no data, and the bytes that are
alive at the same time are counted. So the size of the batch, the precision, the kernels and
gradient checkpointing are all included, and nothing is computed.
"""

import copy
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode  # what torch.compile rests on
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from training.memory import format_bytes

GIB = 2**30
GPUS = (8, 12, 16, 24, 40, 48, 80)  # GiB of memory that GPUs have
RESERVE = 1.5 * GIB  # the CUDA context and buffers of kernels
USABLE = 0.95  # the rest is lost between blocks of other sizes
MOST_PARTS = 2  # of a batch that are computed; from the second on there are gradients before

Context = AbstractContextManager[object]


@dataclass(frozen=True, kw_only=True)
class StepWork:
    """What a training step computes, and what it keeps in memory for that.

    Args:
        trained: modules with gradients and Adam moments.
        frozen: modules with weights alone.
        averaged: bytes of averages of weights, which are float32.
        add_gradients: computes the gradients of a step. It is called with copies of `trained` and
            `frozen`, the number of images that are computed at once, the number of such parts
            that the batch has, and a context for the forward pass, such as autocast. Of the parts
            it computes MOST_PARTS at most, because the others need no more.
    """

    trained: Sequence[nn.Module]
    frozen: Sequence[nn.Module]
    averaged: int
    add_gradients: Callable[[list[nn.Module], int, int, Context], None]


@dataclass(frozen=True, kw_only=True)
class MemoryEstimate:
    """Bytes of a training step, by purpose."""

    weights: int
    gradients: int
    optimizer: int  # two moments per trained weight, as Adam has
    averages: int  # EMA, and power-function averages if they are stored
    activations: int  # what forward and backward pass need in addition to all this, at their peak

    buffers: int  # of kernels, for themselves

    @property
    def total(self) -> int:
        fixed = self.weights + self.gradients + self.optimizer + self.averages
        return fixed + self.activations + self.buffers

    def describe(self, where: str) -> str:
        """Return the total, and what it consists of. where: such as `on this CPU`."""
        names = ("weights", "gradients", "optimizer", "averages", "activations", "buffers")
        items = ", ".join(f"{name} {format_bytes(getattr(self, name))}" for name in names)
        return f"memory of a step {where}: about {format_bytes(self.total)} ({items})"

    @property
    def gpu(self) -> int | None:
        """The memory in GiB of the smallest GPU that suffices; None if none does."""
        return next((size for size in GPUS if self.fits(size)), None)

    def fits(self, gib: float) -> bool:
        """Return whether a GPU with so much memory suffices, if nothing else runs there."""
        return gib * GIB * USABLE >= self.total + RESERVE


def estimate_memory(
    work: StepWork, images: int, parts: int, precision: Context, watching: Context | None = None
) -> MemoryEstimate:
    """Estimate the memory of a training step without computing anything.

    What kernels allocate for themselves cannot be seen; it is copies of weights and of activations
    in other layouts. A tenth of the activations and twice the largest weight is more than all that
    was measured (docs/instruments.md).

    Args:
        images: that are computed at once.
        parts: of the batch, which are computed one after the other. From the second on, all
            gradients are there before the activations.
        precision: context of the forward pass: on a CPU that of the training, for a GPU, which
            need not be there, `GPUPrecision`.
        watching: a context around all operations, which may count them.
    """
    with FakeTensorMode(allow_non_fake_inputs=True), ExitStack() as stack:
        stack.enter_context(watching or nullcontext())
        if isinstance(precision, GPUPrecision) and precision.is_half:
            stack.enter_context(float32_norms())
        copies = [without_data(module) for module in (*work.trained, *work.frozen)]
        alive = stack.enter_context(AliveTensors())
        work.add_gradients(copies, images, parts, precision)
    learned = [w for module in work.trained for w in module.parameters() if w.requires_grad]
    weights = [w for module in (*work.trained, *work.frozen) for w in module.parameters()]
    gradients, largest = (
        tensor_bytes(learned),
        max(map(tensor_bytes, ([w] for w in learned)), default=0),
    )
    return MemoryEstimate(
        weights=tensor_bytes(weights),
        gradients=gradients,
        optimizer=2 * gradients,
        averages=work.averaged,
        activations=max(alive.peak - gradients, 0),
        buffers=max(alive.peak, gradients) // 10 + 2 * largest,
    )


def tensor_bytes(tensors: Sequence[Tensor]) -> int:
    """Return the size of some tensors together."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def without_data(module: nn.Module) -> nn.Module:
    """Return a copy of a module whose weights and buffers have no data.

    Call it in a `FakeTensorMode`. Modules that share a weight share its copy.
    """
    replaced: dict[int, Any] = {}
    for tensor in (*module.parameters(), *module.buffers()):
        fake = torch.empty_like(tensor, device="cpu")
        if isinstance(tensor, nn.Parameter):
            fake = nn.Parameter(fake, requires_grad=tensor.requires_grad)
        replaced[id(tensor)] = fake
    return copy.deepcopy(module, replaced)  # takes these in place of copies


class AliveTensors(TorchDispatchMode):
    """Counts the bytes of tensors that are made in this context, and the most at any time."""

    def __init__(self) -> None:
        super().__init__()  # pyright: ignore[reportUnknownMemberType]
        self.bytes, self.peak = 0, 0
        self.counted: set[int] = set()  # storages; views of a tensor share one

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        given = {
            each.untyped_storage()._cdata
            for each in tree_iter((args, kwargs))
            if isinstance(each, Tensor)
        }
        result = func(*args, **(kwargs or {}))
        for each in tree_iter(result):
            if isinstance(each, Tensor) and each.untyped_storage()._cdata not in given:
                self.count(each.untyped_storage())
        return result

    def count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self.counted:
            self.counted.add(key)
            self.bytes += size
            self.peak = max(self.peak, self.bytes)
            weakref.finalize(storage, self.forget, key, size)

    def forget(self, key: int, size: int) -> None:
        self.counted.discard(key)
        self.bytes -= size


class GPUPrecision:
    """A context for forward passes whose tensors are as large as on a GPU, which need not be there.

    The kernels of a CPU stand in for those of a GPU. Attention does not keep its matrix, and in
    half precision norms are computed in float32 (`float32_norms`).
    """

    def __init__(self, is_half: bool = True):
        """is_half: autocast to bf16, or to fp16, which is as large."""
        self.is_half = is_half
        self.entered: list[ExitStack] = []  # one for each `with` that is not left yet

    def __enter__(self) -> None:
        stack = ExitStack()
        stack.enter_context(torch.autocast("cpu", torch.bfloat16, enabled=self.is_half))
        stack.enter_context(sdpa_kernel(SDPBackend.FLASH_ATTENTION))
        self.entered.append(stack)

    def __exit__(self, *error: object) -> None:
        self.entered.pop().close()


@contextmanager
def float32_norms() -> Iterator[None]:
    """Normalize in float32, as autocast on a GPU does and autocast on a CPU does not.

    The functions are replaced. A mode of PyTorch would not be there when gradient checkpointing
    computes a layer again in the backward pass.
    """

    def in_float32(norm: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda x, *args, **options: norm(x.float(), *args, **options)

    with patch.multiple(
        F, group_norm=in_float32(F.group_norm), layer_norm=in_float32(F.layer_norm)
    ):
        yield
