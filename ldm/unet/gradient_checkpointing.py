"""Gradient checkpointing: what lies inside a layer is computed again when its gradient is."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch
from torch.backends import cuda
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint


def checkpointed(device: torch.device) -> Callable:
    """A `call` of a stage. It restores autocast by itself; which kernels of attention were allowed
    on a CPU, in contexts that have ended when the gradient is computed, is restored here."""
    again = {"context_fn": same_attention} if device.type == "cpu" else {}
    return partial(checkpoint, use_reentrant=False, **again)


def same_attention() -> tuple[AbstractContextManager, AbstractContextManager]:
    """For the forward pass and for its repetition. The kernels keep different tensors for the
    gradient, so another one the second time would be an error."""
    allowed = {
        SDPBackend.FLASH_ATTENTION: cuda.flash_sdp_enabled(),
        SDPBackend.EFFICIENT_ATTENTION: cuda.mem_efficient_sdp_enabled(),
        SDPBackend.CUDNN_ATTENTION: cuda.cudnn_sdp_enabled(),
        SDPBackend.MATH: cuda.math_sdp_enabled(),
    }
    return nullcontext(), sdpa_kernel([kernel for kernel, is_on in allowed.items() if is_on])
