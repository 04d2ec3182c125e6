"""latentsmith completion bash

Prints a script for the shell, with which it completes the commands and flags of `latentsmith`:

    latentsmith completion bash > ~/.local/share/bash-completion/completions/latentsmith
    latentsmith completion zsh > "${fpath[1]}/_latentsmith"
"""

import importlib
import io
from collections.abc import Sequence
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union

import tyro

from training.cli import parse, run_main

SCRIPTS = {  # command -> script, the name of the dataclass of its flags
    "check": ("check", "Options"),
    "train-clip": ("train_clip", "ClipTrainingConfig"),
    "train-vae": ("train_vae", "AutoencoderTrainingConfig"),
    "train-ldm": ("train_ldm", "DiffusionTrainingConfig"),
    "sample": ("sample", "Config"),
    "evaluate": ("evaluate", "COMMANDS"),
    "export": ("export", "Config"),
    "app": ("app", "Config"),
    "report": ("training.tools.report", "Config"),
    "completion": ("latentsmith.completion", "Config"),
}


@dataclass(frozen=True, kw_only=True)
class Config:
    # shell to write the script for: bash or zsh
    shell: Annotated[tyro.conf.Positional[Literal["bash", "zsh"]], tyro.conf.arg(metavar="SHELL")]


def main(argv: Sequence[str] | None = None) -> None:
    config = parse(Config, argv, __doc__)
    print(completion(config.shell), end="")


def completion(shell: str) -> str:
    """Return the script that completes `latentsmith` in a shell."""
    kinds = tuple(subcommand(name, *place) for name, place in SCRIPTS.items())
    commands: Any = Union[kinds]  # noqa: UP007
    output = io.StringIO()
    with redirect_stdout(output), suppress(SystemExit):
        tyro.cli(
            commands,
            prog="latentsmith",
            args=["--tyro-print-completion", shell],
            config=(tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes),
        )
    return output.getvalue()


def subcommand(name: str, script: str, flags: str) -> Any:
    """Return the type that stands for a command and its flags."""
    kind = getattr(module_of(script), flags)
    if isinstance(kind, dict):
        inner = [Annotated[one, tyro.conf.subcommand(word)] for word, one in kind.items()]
        return Annotated[Union[tuple(inner)], tyro.conf.subcommand(name)]  # noqa: UP007
    return Annotated[kind, tyro.conf.subcommand(name)]


def module_of(script: str) -> Any:
    """Import a script: in an installed package it is a module of this one."""
    if (Path(__file__).parent / f"{script}.py").exists():
        return importlib.import_module(f"latentsmith.{script}")
    return importlib.import_module(script)


if __name__ == "__main__":
    run_main(main, Config)
