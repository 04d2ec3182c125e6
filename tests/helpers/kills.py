"""Kills trainings with SIGKILL, and compares the results.

    python -m tests.helpers.kills FOLDER [WORLD]

Without WORLD the miniature of toy_training.py, before every change it makes to a file; with it the
three real stages. Every training runs in a forked process, so that PyTorch is imported once. It is
a program, because the process that forks must not have run a backward pass itself.
"""

import functools
import io
import itertools
import json
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import torch
import torch.utils.tensorboard

from tests.helpers.toy_training import Toy
from training.loop import Plan

# Audit events of Python: what is about to be done to a file or a folder.
CHANGES = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir"}
PLAN = Plan(steps=3, images_per_step=4, save_every=1, evaluate_every=2, log_every=2)
TIMED = 8  # kills at random times


def forked(work: Callable[[], object], kill_after: float | None = None) -> bool:
    """Runs `work` in a process of its own; returns whether it lived to its end."""
    child = os.fork()
    if child == 0:
        try:
            torch.set_num_threads(1)  # those of the parent do not exist here
            sys.stdout = sys.stderr = io.StringIO()
            work()
        except BaseException:
            os.write(2, traceback.format_exc().encode())
            os._exit(1)
        os._exit(0)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert status in (0, signal.SIGKILL), f"ended with {status}"
    return status == 0


def kill_at(number: int, folder: Path) -> None:
    """Kills this process just before it changes something in `folder` for the number-th time."""
    count = itertools.count(1)

    def hook(event: str, arguments: tuple) -> None:
        if event not in CHANGES or not str(arguments[0]).startswith(f"{folder}/"):
            return
        reading = event == "open" and arguments[1] in ("r", "rb")
        if not reading and "/tb/" not in str(arguments[0]) and next(count) == number:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def content(run: Path) -> dict[str, object]:
    """All that must be the same: every byte of the last state, and the metrics but for times."""
    last = sorted((run / "state").glob("step-*"))[-1]
    files = {f"{last.name}/{file.name}": file.read_bytes() for file in sorted(last.iterdir())}
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    files["metrics"] = [{k: v for k, v in m.items() if k != "images_per_second"} for m in lines]
    return files


def differing(run: Path, straight: Path) -> list[str]:
    """Names of what is not as in the run that nobody killed, and of what a kill left over."""
    found, expected = content(run), content(straight)
    names = sorted(found.keys() | expected.keys())
    left = [file.name for file in (run / "state").iterdir() if not file.name.startswith("step-")]
    return [name for name in names if found.get(name) != expected.get(name)] + left


def toy(folder: Path) -> dict[str, object]:
    torch.optim.Adam([torch.zeros(1, requires_grad=True)])  # imports the rest of PyTorch
    start = time.monotonic()
    forked(lambda: Toy(folder / "straight").train(PLAN))
    duration, moments = time.monotonic() - start, random.Random(0)

    def killed(run: Path, number: int) -> None:
        kill_at(number, run)
        Toy(run).train(PLAN)

    wrong, kills = {}, 0
    for number in itertools.count(1):
        run = folder / f"file-{number}"
        if forked(lambda run=run, number=number: killed(run, number)):
            break
        kills += 1
        forked(lambda run=run: Toy(run).train(PLAN))
        wrong[run.name] = differing(run, folder / "straight")
    for number in range(TIMED):
        run = folder / f"time-{number}"
        forked(lambda run=run: Toy(run).train(PLAN), kill_after=duration * moments.random())
        forked(lambda run=run: Toy(run).train(PLAN))
        wrong[run.name] = differing(run, folder / "straight")
    return {"kills": kills, "wrong": {name: found for name, found in wrong.items() if found}}


def stages(folder: Path, world: Path) -> dict[str, object]:
    """Each killed while it writes a state, then again between two steps."""
    import train_clip
    import train_ldm
    import train_vae
    from tests.helpers.bad_calls import command

    # Pictures are decoded by workers and augmented.
    augmented = functools.partial(train_vae.ImageBatches, in_memory=0, flip=True)
    train_vae.ImageBatches = train_clip.ImageBatches = augmented
    train_clip.ImageTransform = functools.partial(train_clip.ImageTransform, crop="random")
    shared = ("--steps", 5, "--save-every", 2, "--evaluate-every", 3, "--log-every", 2,
              "--workers", 2)  # fmt: skip
    adversary = ("--adversarial-weight", 0.5, "--discriminator-start", 1, "--adversarial-start", 2,
                 "--discriminator-width", 16, "--discriminator-layers", 2)  # fmt: skip
    flags = {
        train_clip: ("--augment",),
        train_vae: ("--accumulate", 2, *adversary),
        train_ldm: ("--accumulate", 2, "--preview-prompts", "red"),
    }
    wrong = {}
    for k, (script, own) in enumerate(flags.items()):
        straight, run = folder / f"{script.__name__}-straight", folder / script.__name__

        def train(out: Path, script=script, own=own) -> None:
            script.main(command(script, world, out, *shared, *own))

        def killed_in_save(run=run, train=train, k=k) -> None:
            kill_at(10 + 5 * k, run / "state")
            train(run)

        def killed_in_step(run=run, train=train, script=script) -> None:
            step = script.Stage.step

            def until_4(stage, number):
                if number == 4:
                    os.kill(os.getpid(), signal.SIGKILL)
                return step(stage, number)

            script.Stage.step = until_4
            train(run)

        assert forked(lambda train=train, straight=straight: train(straight))
        assert not forked(killed_in_save) and not forked(killed_in_step)
        assert forked(lambda train=train, run=run: train(run))
        wrong[script.__name__] = differing(run, straight)
    return {"wrong": {name: found for name, found in wrong.items() if found}}


if __name__ == "__main__":
    os.fsync = lambda file: None  # what a killed process wrote is kept; it only costs time
    places = [Path(argument) for argument in sys.argv[1:]]
    print(json.dumps(toy(*places) if len(places) == 1 else stages(*places)))
