"""Low precision where the hardware multiplies in it, and compiled code on CUDA, unasked.

Weights, optimizer state and EMA stay in float32 whatever is chosen.
"""

from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Literal

import torch
from torch import nn
from torch.amp import GradScaler
from torch.nn.attention import SDPBackend, sdpa_kernel

from foundation.errors import UserError

PrecisionName = Literal["auto", "bf16", "fp16", "fp32"]
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


class Precision:
    """A context for the forward pass: arithmetic in half the bits over float32 weights, or nothing.

    auto: bf16 if the hardware has it. CPUs with bf16 instructions (AVX-512 BF16, AMX) take part:
    there a step of the U-Net or of CLIP takes 0.5 to 0.7 of the time. Without such instructions
    bf16 would be emulated, so auto is then fp32.
    """

    def __init__(self, device: torch.device, name: PrecisionName = "auto"):
        if name == "auto":
            name = "bf16" if has_bf16(device) else "fp32"
        if name == "fp16" and device.type != "cuda":
            raise UserError(
                f"--precision fp16 needs a CUDA device, and this one is {device.type}: other "
                "devices have no fast float16 to train in. Use bf16, fp32, or auto."
            )
        self.device, self.name = device, name
        self.entered: list[ExitStack] = []

    def __enter__(self) -> None:
        stack, low = ExitStack(), self.name != "fp32"
        stack.enter_context(torch.autocast(self.device.type, DTYPES[self.name], enabled=low))
        if low and self.device.type == "cpu":
            # Backwards in bf16, fused attention on CPUs is ten times slower than plain products.
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        self.entered.append(stack)

    def __exit__(self, *error: object) -> None:
        self.entered.pop().close()

    def scaler(self) -> GradScaler:
        """Scales the losses, so that small gradients do not round to 0 in float16; else nothing."""
        return GradScaler(self.device.type, enabled=self.name == "fp16")


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
