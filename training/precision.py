"""What an accelerator does without being asked: bf16 where it has it, compiled code on CUDA."""

import torch
from torch import nn


def autocast(device: torch.device) -> torch.autocast:
    """bf16 on GPUs that compute in it; fp32 on everything else, CPUs included.

    Weights, optimizer state and EMA stay in fp32 either way.
    """
    bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.autocast(device.type, torch.bfloat16, enabled=bf16)


def compile_for(device: torch.device, module: nn.Module) -> None:
    """Compiles in place, so that names in `state_dict` stay; on a CPU it would not pay its wait."""
    if device.type == "cuda":
        module.compile()
