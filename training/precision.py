"""bf16 wherever the hardware multiplies in it, and compiled code on CUDA, without being asked."""

from contextlib import AbstractContextManager, ExitStack, nullcontext

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel


class Precision:
    """A context for the forward pass: bf16 arithmetic over fp32 weights, or nothing.

    Weights, optimizer state and EMA stay in fp32 either way. CPUs with bf16 instructions (AVX-512
    BF16, AMX) take part: there a step of the U-Net or of CLIP takes 0.5 to 0.7 of the time. Without
    such instructions bf16 would be emulated, so the context does nothing.
    """

    def __init__(self, device: torch.device, wanted: bool = True):
        self.device = device
        self.bf16 = wanted and has_bf16(device)
        self.entered: list[ExitStack] = []

    def __enter__(self) -> None:
        stack = ExitStack()
        stack.enter_context(torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16))
        if self.bf16 and self.device.type == "cpu":
            # Backwards in bf16, fused attention on CPUs is ten times slower than plain products.
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        self.entered.append(stack)

    def __exit__(self, *error: object) -> None:
        self.entered.pop().close()


def has_bf16(device: torch.device) -> bool:
    """Whether it multiplies bf16 natively."""
    if device.type == "cpu":
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def compile_for(device: torch.device, module: nn.Module) -> None:
    """Compiles in place, so that names in `state_dict` stay; on a CPU it would not pay its wait."""
    if device.type == "cuda":
        module.compile()


def uncompiled(device: torch.device) -> AbstractContextManager:
    """In it, a module compiled by `compile_for` runs as written: for batches of another size and
    mode than those of the training, which would have it compiled again."""
    return torch.compiler.set_stance("force_eager") if device.type == "cuda" else nullcontext()
