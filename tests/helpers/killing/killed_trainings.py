"""Kill trainings with SIGKILL, resume them, and compare them with trainings that nobody killed.

    python -m tests.helpers.killing.killed_trainings FOLDER [WORLD]

Without WORLD it trains the miniature of toy_training.py and kills it before every change to a file.
With WORLD it trains the three real stages.
"""

import functools
import itertools
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch
import torch.utils.tensorboard

from tests import keep_writes_in_memory
from tests.helpers.killing.kills import forked, kill_at
from tests.helpers.toy_training import Toy
from training.loop import Plan

PLAN = Plan(steps=3, images_per_step=4, save_every=1, evaluate_every=2, log_every=2)
TIMED = 4  # kills at random times


def content(run: Path) -> dict[str, object]:
    """Return what must be the same: all bytes of the last state, all metrics except times, best/.

    Of best/ they are the weights, and what chose them.
    """
    last = sorted((run / "state").glob("step-*"))[-1]
    files = {f"{last.name}/{file.name}": file.read_bytes() for file in sorted(last.iterdir())}
    best = [*(run / "best").rglob("*.safetensors"), *(run / "best").glob("best.json")]
    files |= {file.relative_to(run).as_posix(): file.read_bytes() for file in best}
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    files["metrics"] = [{k: v for k, v in m.items() if k != "images_per_second"} for m in lines]
    return files


def differences(run: Path, unkilled: Path) -> list[str]:
    """Return what differs from the run that nobody killed, and the leftovers of kills."""
    found, expected = content(run), content(unkilled)
    names = sorted(found.keys() | expected.keys())
    left = [file.name for file in (run / "state").iterdir() if not file.name.startswith("step-")]
    left += [file.name for file in run.glob(".best*")]
    return [name for name in names if found.get(name) != expected.get(name)] + left


def kill_toy(folder: Path) -> dict[str, object]:
    """Kill the miniature before every change to a file, and at random times."""
    torch.optim.Adam([torch.zeros(1, requires_grad=True)])  # imports the rest of PyTorch
    start = time.monotonic()
    forked(lambda: Toy(folder / "unkilled").train(PLAN))
    duration, moments = time.monotonic() - start, random.Random(0)

    def killed(run: Path, number: int) -> None:
        kill_at(number, run, ignore="/tb/")
        Toy(run).train(PLAN)

    wrong, kills = {}, 0
    for number in itertools.count(1):
        run = folder / f"file-{number}"
        if forked(lambda run=run, number=number: killed(run, number)):
            break
        kills += 1
        forked(lambda run=run: Toy(run).train(PLAN))
        wrong[run.name] = differences(run, folder / "unkilled")
    for number in range(TIMED):
        run = folder / f"time-{number}"
        forked(lambda run=run: Toy(run).train(PLAN), kill_after=duration * moments.random())
        forked(lambda run=run: Toy(run).train(PLAN))
        wrong[run.name] = differences(run, folder / "unkilled")
    return {"kills": kills, "wrong": {name: found for name, found in wrong.items() if found}}


def kill_stages(folder: Path, world: Path) -> dict[str, object]:
    """Kill each stage while it writes a state, then again between two steps."""
    import train_clip
    import train_ldm
    import train_vae
    from commands import train_clip as stage_0
    from commands import train_vae as stage_1
    from tests.helpers.bad_calls import TRAINERS, command

    # Workers decode and augment the images.
    augmented = functools.partial(stage_0.ImageBatches, in_memory=0, flip=True)
    stage_0.ImageBatches = stage_1.ImageBatches = augmented
    stage_0.ImageTransform = functools.partial(stage_0.ImageTransform, crop="random")
    shared = ("--steps", 5, "--save-every", 2, "--evaluate-every", 3, "--log-every", 2,
              "--workers", 2)  # fmt: skip
    adversary = ("--adversarial-weight", 0.5, "--discriminator-start", 1, "--adversarial-start", 2,
                 "--discriminator-width", 16, "--discriminator-layers", 2)  # fmt: skip
    flags = {
        train_clip: ("--shift", 1),
        train_vae: ("--accumulate", 2, *adversary),
        train_ldm: ("--accumulate", 2, "--preview-prompts", "red"),
    }
    wrong = {}
    for k, (script, own) in enumerate(flags.items()):
        unkilled, run = folder / f"{script.__name__}-unkilled", folder / script.__name__

        def train(out: Path, script=script, own=own) -> None:
            script.main(command(script, world, out, *shared, *own))

        def killed_in_save(run=run, train=train, k=k) -> None:
            kill_at(10 + 5 * k, run / "state")
            train(run)

        def killed_in_step(run=run, train=train, script=script) -> None:
            trainer = TRAINERS[script]
            step = trainer.step

            def until_4(self, number):
                if number == 4:
                    os.kill(os.getpid(), signal.SIGKILL)
                return step(self, number)

            trainer.step = until_4
            train(run)

        assert forked(lambda train=train, unkilled=unkilled: train(unkilled))
        assert not forked(killed_in_save) and not forked(killed_in_step)
        assert forked(lambda train=train, run=run: train(run))
        wrong[script.__name__] = differences(run, unkilled)
    return {"wrong": {name: found for name, found in wrong.items() if found}}


if __name__ == "__main__":
    keep_writes_in_memory()
    paths = [Path(argument) for argument in sys.argv[1:]]
    print(json.dumps(kill_toy(*paths) if len(paths) == 1 else kill_stages(*paths)))
