"""Begin a training or another script, and end it in a step in the way that is asked for.

python -m tests.helpers.windows.trainings ENDING SCRIPT FLAGS

ENDING: `killed` ends the process in step 3, without any word, as the Task Manager does; `stopped`
is Ctrl-C in step 3; `finished` lets it go on to its end.
"""

import importlib
import os
import signal
import sys
from typing import Any

from training.cli import run_main

TRAINERS = {
    "train_clip": ("stages.clip", "ClipTrainer"),
    "train_vae": ("stages.autoencoder", "AutoencoderTrainer"),
    "train_ldm": ("stages.diffusion", "DiffusionTrainer"),
}
STEP = 2  # counted from 0


def end_in_step(script: str, ending: str) -> None:
    """Let the step of the stage's trainer end the process."""
    module, name = TRAINERS[script]
    trainer = getattr(importlib.import_module(module), name)
    step = trainer.step

    def ended(self: Any, number: int) -> Any:
        if number == STEP and ending == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if number == STEP and ending == "stopped":
            signal.raise_signal(signal.SIGINT)
        return step(self, number)

    trainer.step = ended


def main() -> None:
    ending, script, *flags = sys.argv[1:]
    module = importlib.import_module(script)
    if ending != "finished":
        end_in_step(script, ending)
    run_main(lambda: module.main(flags))


if __name__ == "__main__":
    main()
