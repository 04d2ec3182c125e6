"""python evaluate.py autoencoder runs/vae --data data/openmoji

Measures how good a model is, and writes a page and a JSON file.

An evaluation that was stopped goes on with the same command. With torchrun its processes share the
images. What cannot be computed, because weights are missing or images are few, is named with what
to do; nothing is downloaded.
"""

import shlex
import sys
from collections.abc import Sequence

from commands.flags.evaluate import COMMANDS, Config
from foundation.errors import UserError
from training.cli import parse, run_main


def main(argv: Sequence[str] | None = None) -> None:
    argv = list(sys.argv[1:] if argv is None else argv)
    refuse_old_form(argv)
    config: Config = parse(COMMANDS, argv, __doc__)
    from commands.evaluate import run  # after parsing: it imports torch, which takes seconds

    run(config)


def refuse_old_form(argv: Sequence[str]) -> None:
    """Raise a UserError that has the new command, if the words are those of the old one."""
    if not argv or argv[0] in COMMANDS:
        return
    words, model = [], None
    rest = iter(argv)
    for word in rest:
        if word == "--model":
            model = next(rest, None)
        elif word.startswith("--model="):
            model = word.removeprefix("--model=")
        else:
            words.append(word)
    if model is not None:
        command = shlex.join(["python", "evaluate.py", "model", model, *words])
        raise UserError(f"evaluate.py has commands now. Instead of --model write:\n  {command}")


if __name__ == "__main__":
    run_main(main, COMMANDS)
