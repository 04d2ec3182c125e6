"""The U-Net compiled: a minute at first for each size and batch, faster from then on."""

import os
import shutil
from collections.abc import Callable

import torch
from torch import Tensor

from foundation.errors import UserError
from generation.compile_ahead import Ahead
from ldm.unet import UNet


def compile_unet(unet: UNet) -> None:
    """Of a U-Net that is on its device, and whose weights stay as they are.

    Raises:
        ValueError: a CPU, and no compiler for it.
    """
    if unet.conv_in.weight.device.type == "cpu":
        check_compiler()
        unet.run = Ahead(unet)
    else:
        unet.run = kept(torch.compile(unet.run, dynamic=False, mode="reduce-overhead"))


def is_compiled(unet: UNet) -> bool:
    return "run" in vars(unet)


def as_written(unet: UNet) -> None:
    """Takes `compile_unet` back, for other weights."""
    vars(unet).pop("run", None)


def kept(run: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """CUDA graphs write every result to one place; multistep samplers look at earlier ones."""

    def call(*args) -> Tensor:
        torch.compiler.cudagraph_mark_step_begin()
        return run(*args).clone()

    return call


def check_compiler() -> None:
    """PyTorch's own message for this is long, and comes after the model was read."""
    names = [os.environ["CXX"]] if "CXX" in os.environ else ["g++", "clang++", "cl"]
    if not any(map(shutil.which, names)):
        raise UserError(
            f"compiling for a CPU needs a C++ compiler, but {' or '.join(names)} is not on the "
            "PATH. Install one, name it in the environment variable CXX, or leave out --compile."
        )
