"""What Windows refuses, simulated on Linux: none of it keeps anything from working."""

import importlib
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.bad_calls import command
from tests.helpers.data.parquet_files import image_table, write_parquet
from tests.helpers.shards import make_shards
from tests.helpers.short_runs import numbers, same_weights
from tests.helpers.windows import environment

ROOT = Path(__file__).parents[2]
CHEAP = ("simulation", "replacing", "toy_training", "commands", "printing")
SLOW = ("locking", "workers")
STAGES = ("train_clip", "train_vae", "train_ldm")
OPTIONS = {
    "train_clip": ("--shift", 1),
    "train_vae": ("--adversarial-weight", 0.5, "--discriminator-start", 1, "--accumulate", 2),
    "train_ldm": ("--preview-prompts", "red"),
}


def call(*command: object, ends_with: int = 0) -> str:
    """Run Python in the mode, and return what it printed."""
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=ROOT,
        capture_output=True,
        encoding="cp1252",
        env=environment(),
    )
    assert done.returncode == ends_with, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.mark.slow
def test_files_and_a_small_training(tmp_path):
    printed = call("-m", "tests.helpers.windows.programs", tmp_path, *CHEAP)
    assert [f"{name} done" in printed for name in CHEAP] == [True] * len(CHEAP)
    assert "snowman \\u2603" in printed


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_processes_that_are_not_forked(tmp_path, name):
    assert f"{name} done" in call("-m", "tests.helpers.windows.programs", tmp_path, name)


@pytest.mark.slow
@pytest.mark.parametrize("script", STAGES)
def test_a_training_is_killed_stopped_and_resumed(world, tmp_path, script):
    """Workers are spawned. In the end the numbers and the weights are those of a straight run."""
    flags = ("--steps", 5, "--save-every", 2, "--evaluate-every", 3, "--log-every", 1)
    flags += ("--workers", 1, *OPTIONS[script])
    data = {
        "train_clip": world / "data",
        "train_vae": parquet_of(tmp_path),
        "train_ldm": make_shards(tmp_path, 12),
    }

    def train(run: str, ending: str, status: int = 0) -> None:
        own = ("--data", data[script], *flags)
        arguments = command(importlib.import_module(script), world, tmp_path / run, *own)
        call("-m", "tests.helpers.windows.trainings", ending, script, *arguments, ends_with=status)

    train("straight", "finished")
    train("killed", "killed", -signal.SIGKILL)
    train("killed", "stopped", 130)
    train("killed", "finished")
    ours, theirs = (tmp_path / name for name in ("killed", "straight"))
    assert numbers(ours) == numbers(theirs)
    weights = sorted(path.relative_to(ours) for path in (ours / "model").rglob("*.safetensors"))
    assert weights
    for name in weights:
        same_weights(ours / name, theirs / name)
    entries = (path.name for path in ours.rglob("*"))
    assert not [name for name in entries if name.endswith((".partial", ".old"))]


@pytest.mark.slow
def test_scripts_as_users_start_them(world, tmp_path):
    """Each with __main__ of its own, which a spawned worker imports again."""
    data = ("--data", world / "data", "--preset", "tiny-32", "--batch-size", 4)
    call("check.py", world / "data", "--batch-size", 4, "--sheet", tmp_path / "sheet.png")
    vae = ("train_vae.py", *data, "--steps", 2, "--workers", 1, "--out", tmp_path / "vae")
    call(*vae)
    call(*vae)  # it is finished
    call("-m", "training.tools.report", tmp_path / "vae")
    assert (tmp_path / "vae" / "report.html").is_file()
    parts = ("--vae", world / "vae", "--text-encoder", world / "clip")
    more = (*data, *parts, "--steps", 2, "--out", tmp_path / "ldm", "--held-out", 0.2)
    call("train_ldm.py", *more, "--find-batch-size")
    assert not (tmp_path / "ldm").exists()
    call("train_ldm.py", *more, "--workers", 1)
    lora = ("--init-from", tmp_path / "ldm", "--lora", 2, "--out", tmp_path / "lora")
    call("train_ldm.py", *data, *parts, "--steps", 2, *lora)


def parquet_of(folder: Path) -> Path:
    """Write twelve images into two tables."""
    table = image_table(folder / "pictures", range(12))
    for k in range(2):
        part = table.slice(6 * k, 6)
        write_parquet(folder / "parquet" / "data" / f"train-{k}.parquet", part)
    return folder / "parquet"
