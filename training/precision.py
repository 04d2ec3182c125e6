"""Arithmetic in half the bits where the hardware has it.

Weights, optimizer state and EMA stay in float32 whatever is chosen.
"""

from contextlib import ExitStack

import torch
from torch.amp import GradScaler
from torch.nn.attention import SDPBackend, sdpa_kernel

from foundation.errors import UserError
from training.config import PrecisionName

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


class Precision:
    """Context manager for the forward pass: autocast over float32 weights, or nothing for fp32.

    auto: bf16 if the hardware has it. CPUs with bf16 instructions (AVX-512 BF16, AMX) count: there
    a step of the U-Net or of CLIP takes 0.5 to 0.7 of the time. Without such instructions bf16
    would be emulated, so auto is then fp32.
    """

    def __init__(self, device: torch.device, name: PrecisionName = "auto"):
        """Choose the precision for a device.

        Raises:
            UserError: float16 was asked for on another device than CUDA.
        """
        if name == "auto":
            name = "bf16" if has_bf16(device) else "fp32"
        if name == "fp16" and device.type != "cuda":
            raise UserError(
                f"--precision fp16 needs a CUDA device, and this one is {device.type}: other "
                "devices have no fast float16 to train in. Use bf16, fp32, or auto."
            )
        self.device, self.name = device, name
        self.entered: list[ExitStack] = []  # one for each `with` that is not left yet

    def __enter__(self) -> None:
        stack, low = ExitStack(), self.name != "fp32"
        stack.enter_context(torch.autocast(self.device.type, DTYPES[self.name], enabled=low))
        if low and self.device.type == "cpu":
            # The backward pass of fused attention in bf16 is ten times slower on CPUs than that of
            # plain matrix products.
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        self.entered.append(stack)

    def __exit__(self, *error: object) -> None:
        self.entered.pop().close()

    def scaler(self) -> GradScaler:
        """Make the loss scaling for float16, where small gradients would round to 0.

        For other precisions it scales by 1.
        """
        return GradScaler(self.device.type, enabled=self.name == "fp16")


def has_bf16(device: torch.device) -> bool:
    """Return whether a device multiplies bf16 natively."""
    if device.type == "cpu":
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
