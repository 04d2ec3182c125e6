"""Compiled code for the networks of a training: `--compile`.

A step has fixed shapes, so the code is made for these alone. Evaluations have others, and run the
networks without their compiled code. The code is kept on disk for later runs.
"""

import importlib.util
import math
import os
import shutil
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from torch import nn

from foundation import collectives
from foundation.errors import UserError
from training.watchdog import report_progress

ROUNDS = 3  # of measurements, of which the fastest counts


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


def compile_in_place(module: nn.Module, lengths_vary: bool = False) -> None:
    """Compile a module for the shapes of a training; names in its `state_dict` stay as they are.

    Images of several shapes (`--max-aspect`) get code for each of them.

    lengths_vary: make code for all lengths of texts at once, as soon as a second one comes. A batch
        of captions has another length than the one before.
    """
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 32)
    module.compile(dynamic=None if lengths_vary else False)


def eager_mode() -> AbstractContextManager[object]:
    """Run compiled modules without their compiled code, as an evaluation does."""
    return torch.compiler.set_stance("force_eager")


def code_folder() -> Path:
    """Return the folder in which compiled code is kept; what lies there can be made anew."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "latentsmith"


def compile_and_time(
    compile_networks: Callable[[], object],
    gradients: Callable[[], object],
    device: torch.device,
) -> None:
    """Compile the networks of a training; print how long it took, and when it has paid for itself.

    Args:
        gradients: computes the gradients of a step, and throws them away.
    """
    # Its default lies in the folder of temporary files, which is emptied.
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(code_folder() / "inductor"))
    report_progress("compiling", timeout=math.inf)
    compile_networks()
    first = seconds(gradients, device)
    times: dict[bool, list[float]] = {True: [], False: []}
    for _ in range(ROUNDS):  # in turn, so that other load on the machine affects both alike
        for is_compiled, measured in times.items():
            with nullcontext() if is_compiled else eager_mode():
                measured.append(seconds(gradients, device))
    plain, compiled = min(times[False]), min(times[True])
    if not collectives.rank():
        print(describe_gain(plain, first, compiled), flush=True)


def seconds(call: Callable[[], object], device: torch.device) -> float:
    started = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def describe_gain(plain: float, first: float, compiled: float) -> str:
    """Say in words what compiled code costs and gains.

    Args:
        plain: seconds for the gradients of a step without compiled code.
        first: the same with compiled code, the first time; it contains the compiling.
        compiled: the same from then on.
    """
    cost = max(first - compiled, 0.0)
    text = f"compiled in {cost:.0f} s; the gradients of a step take {compiled:.3g} s"
    if compiled >= plain:
        return f"{text}, and {plain:.3g} s without: --compile gains nothing here."
    steps = math.ceil(cost / (plain - compiled))
    return (
        f"{text} instead of {plain:.3g} s. That has paid for itself after {steps:,} steps "
        f"({steps * compiled / 60:.1f} minutes)."
    )
