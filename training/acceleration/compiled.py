"""Compiled code for the networks of a training: `--compile`.

A step has fixed shapes, so the code is made for these alone. Evaluations have others, and run the
networks without their compiled code.
"""

import importlib.util
import os
import shutil
from contextlib import AbstractContextManager

import torch
from torch import nn

from foundation.errors import UserError


def check_compiler(device: torch.device) -> None:
    """Refuse to compile where the tools for it are missing, before anything is read.

    Raises:
        UserError: there is no C++ compiler for a CPU, or no Triton for a GPU.
    """
    if device.type == "cuda":
        if importlib.util.find_spec("triton") is None:
            raise UserError(
                "compiling for a GPU needs Triton, which is not installed. Install it (pip install "
                "triton), or leave out --compile."
            )
        return
    names = [os.environ["CXX"]] if "CXX" in os.environ else ["g++", "clang++", "cl"]
    if not any(map(shutil.which, names)):
        raise UserError(
            f"compiling for a CPU needs a C++ compiler, but {' or '.join(names)} is not on the "
            "PATH. Install one, name it in the environment variable CXX, or leave out --compile."
        )


def compile_in_place(module: nn.Module) -> None:
    """Compile a module for the shapes of a training; names in its `state_dict` stay as they are.

    Images of several shapes (`--max-aspect`) get code for each of them.
    """
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 32)
    module.compile(dynamic=False)


def eager_mode() -> AbstractContextManager[object]:
    """Run compiled modules without their compiled code, as an evaluation does."""
    return torch.compiler.set_stance("force_eager")
