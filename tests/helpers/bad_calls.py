"""Calls that users get wrong: good ones to begin with, and what a refusal must look like."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import check
import evaluate
import export
import sample
import train_clip
import train_ldm
import train_vae
from autoencoder import PRESETS as AUTOENCODERS
from autoencoder import Autoencoder
from conditioning.clip import PRESETS as CLIPS
from conditioning.clip import Clip
from ldm import TextToImage
from ldm.schedule import ScheduleConfig
from ldm.unet import PRESETS as UNETS
from ldm.unet import UNet
from stages.autoencoder import AutoencoderTrainer, AutoencoderTrainingConfig
from stages.clip import ClipTrainer, ClipTrainingConfig
from stages.diffusion import DiffusionTrainer, DiffusionTrainingConfig
from tests.helpers.images import captioned
from training.cli import run_main

CONFIGS: dict[ModuleType, Any] = {  # of a script with commands: command -> config
    check: check.Options,
    train_clip: ClipTrainingConfig,
    train_vae: AutoencoderTrainingConfig,
    train_ldm: DiffusionTrainingConfig,
    sample: sample.Config,
    evaluate: evaluate.COMMANDS,
    export: export.Config,
}
TRAINERS = {
    train_clip: ClipTrainer,
    train_vae: AutoencoderTrainer,
    train_ldm: DiffusionTrainer,
}
TRAININGS = tuple(TRAINERS)


def make_world(root: Path) -> Path:
    """A data folder and untrained models of every kind, as a user would have them."""
    captioned(root / "data", 12)
    torch.manual_seed(0)
    for name in ("vae", "other_vae"):
        Autoencoder(AUTOENCODERS["tiny-32"]).save(root / name / "model")
    for name in ("clip", "other_clip"):
        clip = Clip(CLIPS["tiny-32"])
        clip.text_encoder().save(root / name / "model")
        clip.save(root / name / "model" / "clip")
    vae, unet = Autoencoder.load(root / "vae"), UNet(UNETS["tiny-32"])
    schedule = ScheduleConfig(noise_schedule="scaled_linear")
    TextToImage(unet, vae, clip.text_encoder(), schedule, "velocity").save(root / "ldm" / "model")
    (root / "empty").mkdir()
    (root / "unfinished" / "state").mkdir(parents=True)
    (root / "unfinished" / "config.json").write_text('{"steps": 5, "text_encoder": "clip"}')
    return root


def command(script: ModuleType, world: Path, out: Path, *flags: object) -> list[str]:
    """Arguments of a call that works and takes a second; what `flags` repeats, they override."""
    model, flags = world / "ldm", list(flags)
    if script is evaluate and "--model" in flags:  # where others have a flag, it has an argument
        place = flags.index("--model")
        _, model = flags[place : place + 2]
        del flags[place : place + 2]
    fixed: dict[ModuleType, Sequence[object]] = {
        train_clip: (),
        train_vae: (),
        train_ldm: ("--vae", world / "vae", "--text-encoder", world / "clip"),
        sample: ("red", "--model", world / "ldm", "--steps", 1),
        evaluate: ("model", model, "--judge", world / "clip", "--steps", 1),
    }
    shared: Sequence[object] = ("--out", out, "--device", "cpu")
    if script is not sample:
        shared = (*shared, "--data", world / "data")
    if script in TRAININGS:
        shared = (*shared, "--preset", "tiny-32", "--steps", 2, "--batch-size", 4)
    return [str(word) for word in (*fixed[script], *shared, *flags)]


def tree(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file below with its size and time.

    Not the index that any script leaves beside data, nor the lock that says who trained last.
    """
    return {
        str(path.relative_to(folder)): (path.stat().st_size, path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file() and path.name != "run.lock" and ".latentsmith" not in path.parts
    }


def refusal(capsys: pytest.CaptureFixture, script: ModuleType, arguments: list[str]) -> str:
    """Runs the script, which must end as a user's mistake does; returns its one message."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        run_main(lambda: script.main(arguments), CONFIGS[script])
    text = capsys.readouterr().err
    assert stopped.value.code == 2, text
    assert "Traceback" not in text
    if "error: " not in text:  # tyro's own, in a box
        return text
    assert len(re.findall("^error: ", text, flags=re.M)) == 1, text
    return text[text.index("error: ") :]


@contextmanager
def unchanged(*folders: Path) -> Iterator[None]:
    before = [tree(folder) for folder in folders]
    yield
    assert [tree(folder) for folder in folders] == before
