"""latentsmith sample "red heart" --model runs/ldm

Runs one of the programs: `latentsmith train-vae ...` is `python train_vae.py ...`, also where there
is no checkout.
"""

import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

from foundation import __version__
from foundation.errors import did_you_mean, shown

COMMANDS = {  # name -> what it does
    "check": "report on a data folder before training on it",
    "train-clip": "stage 0: captions and images to a text encoder",
    "train-vae": "stage 1: images to an autoencoder",
    "train-ldm": "stage 2: latents and captions to a U-Net",
    "sample": "prompts to pictures",
    "evaluate": "how good an autoencoder or a model is",
    "export": "to and from diffusers folders and single files",
    "app": "a page in the browser: draw and change pictures",
    "report": "a page about a run: curves, pictures, settings",
    "completion": "print what makes bash or zsh complete commands and flags",
}
MODULES = {"report": "training.tools.report", "completion": "latentsmith.completion"}


def main(argv: Sequence[str] | None = None) -> None:
    """Run the program that the first word names, with the words after it."""
    name, *words = [*(sys.argv[1:] if argv is None else argv), ""][:-1] or ["--help"]
    if name in ("-h", "--help"):
        print(help_text())
    elif name == "--version":
        print(f"Latentsmith {__version__}")
    elif name.replace("_", "-").removesuffix(".py") not in COMMANDS:
        hint = did_you_mean(name, COMMANDS)
        print(
            f"error: there is no command {shown(name)}.{hint} There are: {', '.join(COMMANDS)}.",
            file=sys.stderr,
        )
        sys.exit(2)
    else:
        run(name.replace("_", "-").removesuffix(".py"), words)


def run(name: str, words: Sequence[str]) -> None:
    """Run a program as Python runs a script."""
    sys.argv = [f"latentsmith {name}", *words]
    script = name.replace("-", "_")
    checkout = Path(__file__).parents[1] / f"{script}.py"
    if name in MODULES:
        runpy.run_module(MODULES[name], run_name="__main__", alter_sys=True)
    elif (Path(__file__).parent / f"{script}.py").exists():  # in an installed package
        runpy.run_module(f"latentsmith.{script}", run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(str(checkout), run_name="__main__")


def help_text() -> str:
    """Return what `latentsmith --help` prints."""
    lines = [f"  {name:14}{what}" for name, what in COMMANDS.items()]
    return "\n".join(
        [
            (__doc__ or "").strip(),
            "",
            "commands, each with a --help of its own:",
            *lines,
        ]
    )


if __name__ == "__main__":
    main()
