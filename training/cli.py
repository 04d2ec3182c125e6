"""Command lines from dataclasses: `--preset` sets the defaults, other flags override them."""

import dataclasses
import errno
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from itertools import zip_longest
from typing import Any, TypeVar

import torch
import tyro
from safetensors import SafetensorError

from foundation.collectives import is_initialized, local_rank
from foundation.errors import UserError, unknown_name
from training.bounds import check_bounds
from training.distributed import process_group
from training.memory import keep_freed_memory
from training.signals import interruptible
from training.watchdog import STOPPED

Config = TypeVar("Config")
BUG = (
    "This is a bug in Latentsmith, not a mistake of yours. Please report it: send the lines above, "
    "the command, and what `python train_ldm.py --version` prints."
)


def parse(
    config: type[Config],
    argv: Sequence[str] | None,
    description: str,
    presets: Mapping[str, Mapping[str, Any]] | None = None,
) -> Config:
    """Reads the command line into `config`, a dataclass whose fields are the flags.

    Args:
        argv: arguments without the program's name; None reads those of the process.
        description: what `--help` begins with; its first lines are an example to copy.
        presets: name -> values of the fields it sets; the default of `config.preset` names the
            one that holds when none is asked for.
    """
    argv = with_overrides(list(sys.argv[1:] if argv is None else argv))
    description = description.rstrip()
    options = {"args": argv, "config": (tyro.conf.OmitArgPrefixes,)}
    if presets is None:
        given = tyro.cli(config, description=description, **options)
        check_bounds(given, config)
        return given
    name = given_preset(argv)
    name = config.preset if name is None else name
    if name not in presets:
        raise unknown_name(name, list(presets), "preset")
    required = {
        field.name: tyro.MISSING
        for field in dataclasses.fields(config)
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    }
    default = config(**required, preset=name, **presets[name])
    description += f"\n\nPresets: {', '.join(presets)}. The defaults below are those of {name}."
    given = tyro.cli(config, default=default, description=description, **options)
    check_bounds(given, default)
    return given


def with_overrides(argv: list[str]) -> list[str]:
    """`--override steps=900 shard=false` also sets the flags: `--steps 900 --no-shard` follow."""
    flags, inside = [], False
    for word in argv:
        inside = word == "--override" or (inside and not word.startswith("--"))
        if not inside or word == "--override":
            continue
        name, equals, value = word.partition("=")
        if not equals:
            raise UserError(f"--override takes NAME=VALUE, such as steps=900; got {word!r}.")
        name = name.replace("_", "-").rpartition(".")[2]
        if value.lower() in ("true", "false"):
            flags.append(("--" if value.lower() == "true" else "--no-") + name)
        else:
            flags += [f"--{name}", value]
    return argv + flags


def given_preset(argv: Sequence[str]) -> str | None:
    """The value of the last `--preset NAME` or `--preset=NAME`."""
    name = None
    for flag, following in zip_longest(argv, argv[1:]):
        if flag == "--preset":
            name = following
        elif flag.startswith("--preset="):
            name = flag.removeprefix("--preset=")
    return name


def run_main(main: Callable[[], None]) -> None:
    """Call a script's main; an error that the user can mend ends it with one line and status 2.

    Set LATENTSMITH_TRACEBACK=1 to see where that error came from. Any other exception is a bug: it
    keeps its traceback, with a note that says what to report.
    """
    keep_freed_memory()
    with process_group() as watchdog:
        try:
            with interruptible():
                return main()
        except KeyboardInterrupt as stop:
            message, status = "\n" + (str(stop) or "stopped."), STOPPED  # after the terminal's ^C
        except (UserError, OSError, SafetensorError, MemoryError) as error:
            if os.environ.get("LATENTSMITH_TRACEBACK"):
                raise
            message, status = f"error: {in_words(error)}", 2
        except Exception as error:
            error.add_note(BUG)
            raise
        # Not before here: with the error its stack is gone, and the progress bars in it have ended.
        watchdog.exit(message, status)


def in_words(error: Exception) -> str:
    """The message of an error. What comes from the system bare gets a file and advice."""
    if isinstance(error, MemoryError):
        return "the memory does not suffice. Ask for smaller pictures, or for fewer at once."
    inner = re.search(r"\(os error (\d+)\)", str(error))  # how safetensors passes one on
    if inner and isinstance(error, SafetensorError):
        error = OSError(int(inner[1]), os.strerror(int(inner[1])))
    if not isinstance(error, OSError) or not error.strerror:
        return str(error)
    if error.strerror != os.strerror(error.errno):
        return error.strerror  # somebody explained it
    text = f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    if error.errno in (errno.EROFS, errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.ENODEV):
        return (
            f"the disk cannot be used, or not any more ({text}). What was complete before is "
            "untouched. When it is back, run the same command again."
        )
    if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return text
    return (
        f"the disk is full, or a limit is reached ({text}). What was complete before is untouched, "
        "and nothing half-written stays. Free some space, and run the same command again."
    )


def pick_device(name: str) -> torch.device:
    """`auto` is the first accelerator there is, otherwise the CPU.

    Of several processes on a machine, each takes the GPU of its number.
    """
    if name == "auto":
        found = torch.accelerator.current_accelerator(check_available=True)
        name = found.type if found else "cpu"
    try:
        device = torch.device(name)
        if is_initialized() and device.type == "cuda":
            device = own_gpu(device)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError) as error:
        raise UserError(
            f"--device {name} cannot be used here ({str(error).splitlines()[0]}). "
            "Use --device cpu, or leave it out to take what is there."
        ) from error
    return device


def own_gpu(device: torch.device) -> torch.device:
    """That of this process among those of its machine."""
    if device.index is not None:
        raise UserError(
            f"--device {device} names one GPU, and torchrun has started a process for each. "
            "Use --device cuda; CUDA_VISIBLE_DEVICES says which GPUs there are."
        )
    if local_rank() >= torch.cuda.device_count():
        raise UserError(
            f"torchrun has started more processes on this machine than its "
            f"{torch.cuda.device_count()} GPUs. Lower --nproc-per-node to that."
        )
    torch.cuda.set_device(local_rank())
    return torch.device("cuda", local_rank())
