"""What is said before a training begins: memory, time, disk, remarks, and what is refused."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import train_clip
import train_ldm
import train_vae
from dataset.table import TableBuilder
from foundation.errors import UserError
from ldm.config import ScheduleConfig
from stages import plan as module
from stages.clip import ClipTrainingConfig
from stages.diffusion import DiffusionTrainingConfig
from stages.plan import (
    RunPlan,
    first_that_fits,
    judge_held_out,
    judge_prediction,
    smaller_steps,
    speed_of_run,
)
from tests.helpers.bad_calls import TRAININGS, command, tree
from training.flags import with_flags
from training.tools.memory_estimate import GIB, StepWork

REQUIRED = {"data": Path("data"), "out": Path("nowhere/run"), "vae": Path("v"), "text_encoder": "t"}
MEGABYTE = 2**20
NO_PAIRS = TableBuilder().build(Path()).pairs


@pytest.fixture
def dry_run(world, tmp_path, capsys):
    def call(script, *flags) -> str:
        script.main(command(script, world, tmp_path / "run", "--dry-run", *flags))
        return capsys.readouterr().out

    return call


def work_of(config) -> StepWork:
    """A step whose images take a megabyte each, and half as much with gradient checkpointing."""

    def add_gradients(copies, images, parts, precision):
        size = MEGABYTE // (8 if config.gradient_checkpointing else 4)
        torch.empty(images, size).sum()

    return StepWork(trained=[nn.Linear(1, 1)], frozen=[], averaged=0, add_gradients=add_gradients)


def plan_of(**settings) -> RunPlan:
    given = {**REQUIRED, "batch_size": 64, "size": 1024, **settings}
    return RunPlan(
        training="train_ldm.py",
        config=DiffusionTrainingConfig(**given),
        device=torch.device("cpu"),
        work=work_of,
        pairs=NO_PAIRS,
    )


# Memory.


@pytest.mark.parametrize(
    ("megabytes", "settings", "words"),
    [
        (40, {}, ["--accumulate 2", "--gradient-checkpointing"]),
        (10, {}, ["--accumulate 8", "--gradient-checkpointing --accumulate 4"]),
        (10, {"accumulate": 4}, ["--accumulate 8", "with --gradient-checkpointing"]),
        (10, {"gradient_checkpointing": True}, ["--accumulate 4"]),
        (1, {}, ["--gradient-checkpointing --accumulate 64"]),
        (0.1, {}, ["--size"]),
    ],
)
def test_too_little_memory_is_said_with_the_flags_that_fit(monkeypatch, megabytes, settings, words):
    monkeypatch.setattr(module, "total_memory", lambda device: int(megabytes * MEGABYTE))
    with pytest.raises(UserError) as error:
        plan_of(**settings).check_memory()
    assert all(word in str(error.value) for word in words), error.value
    assert f"{megabytes * MEGABYTE / 1e6:.3g} MB" in str(error.value)


def test_enough_memory_is_not_remarked_on(monkeypatch):
    for size in (75 * MEGABYTE, None):
        monkeypatch.setattr(module, "total_memory", lambda device, size=size: size)
        plan_of().check_memory()


@given(st.integers(1, 40), st.integers(0, 50))
def test_the_first_that_fits_is_found(count, limit):
    choices = [replace(plan_of().config, steps=count - k) for k in range(count)]
    found = first_that_fits(choices, lambda config: config.steps <= limit)
    assert found == next((config for config in choices if config.steps <= limit), None)


def test_smaller_steps_keep_the_batch_where_it_can_be_divided():
    config = plan_of(batch_size=12, accumulate=2).config
    assert [c.accumulate for c in smaller_steps(config)] == [2, 3, 4, 6, 12]
    clip = ClipTrainingConfig(data=Path("d"), out=Path("o"), batch_size=100)
    assert [c.batch_size for c in smaller_steps(clip)] == [100, 50, 25, 12, 6, 3]


@pytest.mark.parametrize(
    "script",
    [pytest.param(s, marks=[pytest.mark.slow] * (s is train_ldm)) for s in TRAININGS],
    ids=lambda s: s.__name__,
)
def test_a_training_is_refused_before_it_writes_anything(refused, monkeypatch, script):
    monkeypatch.setattr(module, "total_memory", lambda device: 100_000)
    refused(script, r"needs about [\d.]+ MB.*has 0\.1 MB.*--size")


def test_a_gpu_that_does_not_suffice_is_said_with_flags():
    memory = plan_of().memory()
    plan = plan_of()
    assert "GPU of 8 GB" in plan.describe_gpu(memory)
    assert "does not fit a GPU of 80 GB" in plan.describe_gpu(replace(memory, weights=90 * GIB))


# Time, disk, remarks.


def test_a_dry_run_says_memory_gpu_time_and_disk(dry_run):
    text = dry_run(train_ldm, "--images-per-second", 2, "--steps", 900, "--batch-size", 4)
    assert re.search(r"memory of a step on this CPU: about [\d.]+ MB", text)
    assert re.search(r"memory of a step on a GPU: about [\d.]+ MB", text)
    assert "fits a GPU of 8 GB" in text
    assert re.search(r"30:00 min for 3,600 images at 2 images/s", text)
    assert re.search(r"REMARK: 11 of 11 images are smaller than 32 pixels", text)


def test_a_dry_run_knows_the_noise_process_of_stable_diffusion(dry_run):
    """Its schedule checks its own values, which the estimate has to leave to it."""
    text = dry_run(train_ldm, "--prediction", "noise", "--noise-schedule", "scaled_linear")
    assert "memory of a step on a GPU" in text


def test_the_speed_is_that_of_the_run_so_far(tmp_path):
    assert speed_of_run(tmp_path) is None
    lines = [{"step": k, "images_per_second": rate} for k, rate in enumerate([1, 90, 100, 110, 3])]
    lines.insert(2, {"step": 1, "psnr": 30.0})
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert speed_of_run(tmp_path) == 90
    text = plan_of(out=tmp_path, steps=9, batch_size=10).describe_time()
    assert "1 s for 90 images at 90 images/s" in text and str(tmp_path) in text
    assert "--images-per-second" in plan_of(out=tmp_path / "other").describe_time()


def test_the_disk_is_what_a_run_takes(dry_run, world, tmp_path, capsys):
    flags = ("--steps", 2, "--save-every", 1)
    text = dry_run(train_ldm, *flags)
    sizes = re.search(
        r"disk: ([\d.]+) MB at most: latent cache ([\d.]+) MB, states ([\d.]+) MB .* of "
        r"([\d.]+) MB .*, model ([\d.]+) MB, best model \5 MB",
        text,
    )
    most, cache, states, state, model = map(float, sizes.groups())
    assert most == pytest.approx(cache + states + 2 * model, rel=0.01)
    assert states == pytest.approx(3 * state, rel=0.01)
    run = tmp_path / "run"
    train_ldm.main(command(train_ldm, world, run, *flags))
    assert size_of(run / "state" / "step-0000002") == pytest.approx(state, rel=0.1)
    assert len(list((run / "state").iterdir())) == 2
    for name in ("model", "best"):
        assert size_of(run / name) == pytest.approx(model, rel=0.25)  # and the vocabulary
    assert size_of(run / "cache", "*.npy") == pytest.approx(cache, abs=0.02)  # and lists of rows


def size_of(folder: Path, names: str = "*") -> float:
    return sum(file.stat().st_size for file in folder.rglob(names) if file.is_file()) / 1e6


@pytest.mark.parametrize(
    ("held_out", "images", "words"),
    [
        (1, 60, ["only 1 image ", "--held-out 0.2", "12 of the 60"]),
        (2, 100, ["only 2 images ", "--held-out 0.16", "16 of the 100"]),
        (0, 60, []),
        (8, 400, []),
        (3, 16, []),  # more than a fifth would be missed
    ],
)
def test_few_held_out_images_are_remarked_on_with_the_flag(held_out, images, words):
    text = " ".join(with_flags(remark, ["held_out"]) for remark in judge_held_out(held_out, images))
    assert all(word in text for word in words) and bool(text) == bool(words)


@pytest.mark.parametrize(
    ("prediction", "schedule", "is_said"),
    [("noise", "cosine", True), ("velocity", "cosine", False), ("noise", "linear", False)],
)
def test_predicting_the_noise_of_nearly_pure_noise_is_remarked_on(prediction, schedule, is_said):
    found = judge_prediction(prediction, ScheduleConfig(noise_schedule=schedule))
    text = " ".join(with_flags(remark, module.NAMED_IN_REMARKS) for remark in found)
    assert ("--prediction velocity" in text and "--clip-range 4" in text) == is_said == bool(text)


def test_a_full_disk_is_remarked_on(monkeypatch):
    monkeypatch.setattr(module, "free_disk", lambda folder: 10)
    assert "REMARK" in "\n".join(plan_of().describe_disk())


@pytest.mark.parametrize("script", [train_clip, train_vae])
def test_trainings_remark_on_nonsense_before_they_begin(dry_run, tmp_path, script):
    text = dry_run(script, "--steps", 50_000, "--warmup", 50_000)
    assert re.search(r"REMARK: .*50,000", text) and not tree(tmp_path)
