"""All stages as one plan: its commands, what stands against it, and what it needs."""

import json

import pytest
import torch

from dataset.folder import read_folder
from foundation.errors import UserError
from stages.preparation import costs, start
from stages.preparation.all_stages import ALL_PRESETS, AllStages, similar_run
from stages.preparation.data_check import TRAININGS
from tests.helpers.images import captioned, picture
from training.cli import parse

CPU = {"device": "cpu", "preset": "tiny-32"}


@pytest.fixture
def data(tmp_path):
    return captioned(tmp_path / "data", 40)


def stages_of(data, **settings):
    return AllStages(data=data, out=data.parent / "runs" / "birds", **(CPU | settings))


def test_the_commands_have_the_settings_and_each_stage_reads_the_one_before(data):
    steps = {"train_vae.py": 7}
    stages = stages_of(data, steps=steps, seed=3, batch_size={"train_clip.py": 16})
    commands = {command[0]: list(command[1:]) for command in stages.commands()}
    assert list(commands) == ["train_clip.py", "train_vae.py", "train_ldm.py"]
    configs = {}
    for script, words in commands.items():
        kind, presets = TRAININGS[script]
        configs[script] = parse(kind, words, None, presets)
        assert configs[script] == stages.config(script)
        assert (configs[script].seed, configs[script].preset) == (3, "tiny-32")
    out = stages.out
    assert [config.out for config in configs.values()] == [out / "clip", out / "vae", out / "ldm"]
    assert configs["train_vae.py"].steps == 7
    assert configs["train_clip.py"].batch_size == 16
    assert configs["train_ldm.py"].vae == out / "vae"
    assert configs["train_ldm.py"].text_encoder == (out / "clip").as_posix()


@pytest.mark.parametrize("condition", ["class", "none"])
def test_without_text_there_is_no_text_encoder(data, condition):
    *_, last = commands = stages_of(data, condition=condition).commands()
    assert [command[0] for command in commands] == ["train_vae.py", "train_ldm.py"]
    assert last[last.index("--condition") + 1] == condition and "--text-encoder" not in last


def test_a_task_is_part_of_the_last_command_and_of_its_plan(data):
    folder, widths = read_folder(data), []
    for task in ("draw", "inpaint"):
        stages = stages_of(data, condition="none", task=task)
        *_, plan = stages.plans(folder)
        (unet,) = plan.work(plan.config).trained
        widths.append(unet.config.in_channels)
        assert ("--task" in stages.arguments("train_ldm.py")) == (task != "draw")
        assert "--task" not in stages.arguments("train_vae.py")
    assert widths == [4, 9]
    with pytest.raises(UserError, match="does not go with"):
        stages_of(data, condition="class", task="upscale").config("train_ldm.py")


def test_problems_are_named_before_the_start(data):
    folder = read_folder(data)
    assert not stages_of(data, batch_size={"train_clip.py": 16}).problems(folder)
    (too_few,) = stages_of(data, batch_size={"train_clip.py": 64}).problems(folder)
    assert "--batch-size 39 or smaller" in too_few and "train_clip.py" in too_few
    (data / "broken.png").write_bytes(b"no image")
    picture(data / "new.png", seed=99)
    folder = read_folder(data, allow_missing_captions=True)
    captions, unusable = stages_of(data, batch_size={"train_clip.py": 16}).problems(folder)
    assert "1 images have no caption" in captions and "cannot be used" in unusable
    assert not stages_of(data, condition="none", skip_unusable=True).problems(folder)
    with pytest.raises(UserError, match="no caption"):
        start.start_all_stages(stages_of(data))
    assert not (data.parent / "runs").exists()


def test_captions_that_are_no_classes_are_a_problem(data):
    (problem,) = stages_of(data, condition="class").problems(read_folder(data))
    assert "These are no classes" in problem


def test_wrong_settings_are_refused(data):
    with pytest.raises(UserError, match="Did you mean"):
        stages_of(data, preset="tiny-33")
    with pytest.raises(UserError, match="steps"):
        stages_of(data, steps={"train_ldm.py": -1}).config("train_ldm.py")
    assert "small-64" in ALL_PRESETS and "sd15" not in ALL_PRESETS


def test_a_full_disk_stops_before_anything_is_written(data, monkeypatch):
    monkeypatch.setattr(start, "free_disk", lambda folder: 10**6)
    with pytest.raises(UserError, match="are free"):
        start.start_all_stages(stages_of(data, condition="none"))
    assert not (data.parent / "runs").exists()


@pytest.mark.slow
def test_the_needs_are_those_of_the_dry_runs(data, capsys):
    import train_vae

    stages = stages_of(data, condition="none")
    needs = stages.describe(read_folder(data))
    capsys.readouterr()
    train_vae.main([*stages.arguments("train_vae.py"), "--dry-run"])
    printed = capsys.readouterr().out
    for line in printed.splitlines():
        if line.startswith(("memory of a step", "disk:", "it fits")):
            assert line in needs, line
    assert torch.get_default_dtype() == torch.float32


def test_the_speed_of_a_run_with_the_same_settings_is_taken(data):
    config = stages_of(data).config("train_vae.py")
    runs = data.parent / "runs"
    for name, preset in (("same", "tiny-32"), ("other", "small-64")):
        settings = {"loss": {}, "preset": preset, "batch_size": config.batch_size, "size": 32}
        (runs / name).mkdir(parents=True)
        (runs / name / "config.json").write_text(json.dumps(settings))
    assert similar_run(runs, "train_vae.py", config) is None  # it has no speed
    for name in ("same", "other"):
        (runs / name / "metrics.jsonl").write_text('{"step": 1, "images_per_second": 5.0}\n')
    assert similar_run(runs, "train_vae.py", config) == runs / "same"
    assert similar_run(runs, "train_ldm.py", stages_of(data).config("train_ldm.py")) is None


def test_costs_are_those_of_the_plans_and_times_come_from_runs_or_operations(data, monkeypatch):
    monkeypatch.setattr(costs, "counted", {})
    monkeypatch.setattr(costs, "estimate_speed", lambda operations, device, dtype: operations)
    stages, runs = stages_of(data, condition="none"), data.parent / "runs"
    found = list(costs.stage_costs(stages, runs))
    assert [cost.script for cost in found] == ["train_vae.py", "train_ldm.py"]
    for cost, plan in zip(found, stages.plans(read_folder(data)), strict=True):
        assert cost.memory == plan.memory().total and cost.source == "estimated"
        batch_size = cost.config.batch_size
        _, operations = costs.counted[cost.script, "tiny-32", "none", "draw", "cpu", batch_size]
        assert cost.seconds == pytest.approx(cost.config.steps * batch_size / operations)
        assert operations > 1e7
    (runs / "same").mkdir(parents=True)
    batch_size = found[0].config.batch_size
    settings = {"loss": {}, "preset": "tiny-32", "batch_size": batch_size, "size": 32}
    (runs / "same" / "config.json").write_text(json.dumps(settings))
    (runs / "same" / "metrics.jsonl").write_text('{"step": 1, "images_per_second": 5.0}\n')
    vae, ldm = costs.stage_costs(stages, runs)
    assert (vae.run, ldm.run) == (runs / "same", None)
    assert vae.seconds == pytest.approx(vae.config.steps * batch_size / 5)


def test_a_step_that_needs_more_than_the_device_has_does_not_fit(data, monkeypatch):
    monkeypatch.setattr(costs, "total_memory", lambda device: 10**9)
    assert costs.fits(stages_of(data), 10**8) and not costs.fits(stages_of(data), 2 * 10**9)
