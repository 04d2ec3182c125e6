"""A device on the CPU that says it is MPS, and refuses what MPS refuses.

- No float64, also not while values are copied between the device and the CPU: MPS converts on the
  device.
- No tensor of the CPU beside one of the device, except for a single number.
- No random numbers from the device: they would differ from those of other machines.
- A fused optimizer does not know of infinite gradients: MPS ignores `found_inf`.

The values are those of the CPU. What runs on the CPU for want of an operator is not simulated.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

MPS = torch.device("mps:0")  # without a number, PyTorch for CPUs asks for a driver
DOUBLE = (torch.float64, torch.complex128)
IGNORED = ("found_inf", "grad_scale")  # by fused optimizers


class OnDevice(Tensor):
    """A tensor on the pretended device."""

    on_cpu: Tensor

    @staticmethod
    def __new__(cls, on_cpu: Tensor):
        made = Tensor._make_wrapper_subclass(
            cls,
            on_cpu.size(),
            strides=on_cpu.stride(),
            storage_offset=on_cpu.storage_offset(),
            dtype=on_cpu.dtype,
            device="lazy",  # no CPU, so that `.cpu()` is seen
            requires_grad=on_cpu.requires_grad,
        )
        made.on_cpu = on_cpu.detach()
        return made

    @property
    def device(self) -> torch.device:
        return MPS

    def tolist(self) -> Any:
        return self.on_cpu.tolist()

    def __repr__(self, **options: Any) -> str:
        return f"OnDevice({self.on_cpu})"

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return run(func, args, kwargs or {})


class PretendedMPS(TorchDispatchMode):
    """Makes tensors on the pretended device where `device="mps"` is asked for."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return run(func, args, kwargs or {})


def run(func: Any, args: Any, kwargs: Any) -> Any:
    """Run an operator on the CPU, and return its results on the device where they would be."""
    name = func.overloadpacket.__name__
    given = tensors_in((args, kwargs))
    known = {id(x.on_cpu): x for x in given if isinstance(x, OnDevice)}
    device = torch.device(kwargs["device"]) if kwargs.get("device") is not None else None
    on_device = bool(known) if device is None else device.type in ("mps", "lazy")
    if not known and not on_device:
        return func(*args, **kwargs)
    is_copy = name in ("_to_copy", "copy_")
    if not is_copy and not name.startswith(("index", "_index_put")):
        others = [x for x in given if not isinstance(x, OnDevice) and x.dim()]
        assert not others, f"{name}: tensors of the CPU and of MPS: {[x.shape for x in others]}"
    is_random = torch.Tag.nondeterministic_seeded in func.tags and "attention" not in name
    assert not is_random, f"{name}: random numbers are drawn on the CPU"
    if device is not None and on_device:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    if name.startswith("_fused_adam"):
        kwargs = {**kwargs, **dict.fromkeys(IGNORED)}
    plain = tree_map(lambda x: x.on_cpu if isinstance(x, OnDevice) else x, (args, kwargs))
    result = func(*plain[0], **plain[1])
    # To the device, the CPU converts; and a single number of the CPU is no tensor of MPS.
    double = [x for x in given if isinstance(x, OnDevice) or (x.dim() and not is_copy)]
    double = [x for x in (*double, *tensors_in(result)) if x.dtype in DOUBLE]
    assert not double, f"{name}: MPS has no float64"

    def back(x: Any) -> Any:
        return known.get(id(x), OnDevice(x) if on_device else x) if isinstance(x, Tensor) else x

    return tree_map(back, result)


def tensors_in(tree: Any) -> list[Tensor]:
    return [x for x in tree_flatten(tree)[0] if isinstance(x, Tensor)]


@contextmanager
def pretended_mps() -> Iterator[None]:
    """Let `torch.device("mps")` be usable in the block."""
    with pytest.MonkeyPatch.context() as patch, PretendedMPS():
        patch.setattr(torch.__future__, "_swap_module_params_on_conversion", True)
        patch.setattr(torch.mps, "synchronize", lambda: None)
        patch.setattr(torch.mps, "recommended_max_memory", lambda: 2**34)
        only_cpu = torch._C._only_lift_cpu_tensors()
        torch._C._set_only_lift_cpu_tensors(True)  # `torch.tensor` makes it there, then copies
        try:
            yield
        finally:
            torch._C._set_only_lift_cpu_tensors(only_cpu)
