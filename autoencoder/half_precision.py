"""Half precision without black images.

float16 ends at 65504. The activations inside an autoencoder may be larger, however small its
weights are. The result is then NaN, which shows as a black image and would be stored in a cache of
latents (huggingface/diffusers#7188, #7563). bfloat16 has the range of float32.
"""

import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

from foundation.errors import NotFiniteError
from foundation.normalization import at_least_float32

MARGIN = 4  # other images than the measured ones may have activations this many times as large


class Float16Warning(UserWarning):
    """A result overflowed in half precision and was computed a second time, in float32."""


def with_float32_fallback(
    module: nn.Module, compute: Callable[[Tensor], Tensor], x: Tensor, what: str
) -> Tensor:
    """Return compute(x) in float32 or better; if half precision overflows, compute it in float32.

    Args:
        module: the network whose weights `compute` uses.
        what: name of the result in messages, such as "decoding of the latents".

    Raises:
        NotFiniteError: `x` is not finite, or the result is not, even in float32.
    """
    result = at_least_float32(compute(x))
    if result.isfinite().all():
        return result
    if not x.isfinite().all():
        raise NotFiniteError(
            f"the {what} cannot be computed: the input holds NaN or infinity. Look for the fault "
            "in the computation that made the input."
        )
    dtype, device = next(module.parameters()).dtype, x.device.type
    if dtype.itemsize < 4 or torch.is_autocast_enabled(device):
        warnings.warn(
            f"the {what} went beyond the range of half precision and was computed again in "
            "float32. For such images use float32, or bfloat16.",
            Float16Warning,
            stacklevel=3,
        )
        with torch.autocast(device, enabled=False):
            if dtype.itemsize < 4:
                module.float()
            try:
                result = compute(at_least_float32(x))
            finally:
                module.to(dtype)
    if not result.isfinite().all():
        raise NotFiniteError(
            f"the {what} is not finite, even in float32: the autoencoder's weights are broken. "
            "Train it anew, or copy it again."
        )
    return result


@torch.no_grad()
def largest_activation(module: nn.Module, compute: Callable[[], object]) -> float:
    """Return the largest absolute output of any layer of `module` while `compute` runs."""
    maxima: list[Tensor] = []

    def record(layer: nn.Module, inputs: object, output: object) -> None:
        if isinstance(output, Tensor):
            maxima.append(output.abs().max())

    handles = [layer.register_forward_hook(record) for layer in module.modules()]
    try:
        compute()
    finally:
        for handle in handles:
            handle.remove()
    return torch.stack(maxima).max().item()


def fits_float16(activation: float) -> bool:
    """Return whether activations this large, measured on some images, leave room for other images.

    activation: as `largest_activation` measures it.
    """
    return activation * MARGIN <= torch.finfo(torch.float16).max
