"""Half precision without black pictures.

float16 ends at 65504, and what an autoencoder passes from layer to layer may lie beyond, however
small its weights are. The result is NaN: shown as a black picture, and kept by a cache of latents
(huggingface/diffusers#7188, #7563). bfloat16 has the range of float32.
"""

import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

from autoencoder.layers import at_least_float32
from foundation.errors import NotFiniteError

MARGIN = 4  # other images than those measured may go this much further


class Float16Warning(UserWarning):
    """Something was computed a second time, in float32."""


def finite(module: nn.Module, compute: Callable[[Tensor], Tensor], x: Tensor, what: str) -> Tensor:
    """compute(x) in float32 or better; computed in float32, too, if half precision overflows.

    Args:
        module: whose weights `compute` uses.
        what: is computed, for messages.

    Raises:
        FloatingPointError: the result is not finite in float32, either.
    """
    result = at_least_float32(compute(x))
    if result.isfinite().all():
        return result
    if not x.isfinite().all():
        raise NotFiniteError(
            f"the {what} cannot be computed: what was given holds NaN or infinity. Whatever made "
            "it went wrong; look there."
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
    """The largest absolute value that any layer of `module` gives while `compute` runs."""
    largest = []

    def look(layer: nn.Module, given: object, result: object) -> None:
        if isinstance(result, Tensor):
            largest.append(result.abs().max())

    handles = [layer.register_forward_hook(look) for layer in module.modules()]
    try:
        compute()
    finally:
        for handle in handles:
            handle.remove()
    return torch.stack(largest).max().item()


def fits_float16(activation: float) -> bool:
    """Whether activations up to this one, in a sample of images, leave room for others."""
    return activation * MARGIN <= torch.finfo(torch.float16).max
