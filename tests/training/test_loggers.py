"""TensorBoard and Weights & Biases beside metrics.jsonl; the latter played by a stub."""

import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from PIL import Image
from torch import nn

from training.logging.loggers import open_loggers
from training.logging.metrics import MetricsFile
from training.loop import Plan, train
from training.run import Run


class Stub(ModuleType):
    """As much of wandb as is used; it keeps what it was told."""

    class Error(Exception):
        pass

    def __init__(self):
        super().__init__("wandb")
        self.calls, self.logged, self.summary, self.finished = [], [], {}, 0

    def init(self, **options):
        self.calls.append(options)
        return self

    def log(self, values, step):
        self.logged.append((step, values))

    def finish(self):
        self.finished += 1

    def Image(self, file):
        return f"image of {Path(file).name}"


@pytest.fixture
def wandb(monkeypatch):
    stub = Stub()
    monkeypatch.setitem(sys.modules, "wandb", stub)
    return stub


def train_toy(folder: Path, config: dict, steps: int = 4) -> None:
    """A run whose looks give a number, a verdict and a picture."""
    run, model = Run(folder, config), nn.Linear(1, 1)

    def look(step):
        Image.new("RGB", (8, 6), "red").save(run.preview(step))
        return {"psnr": 20.0 + step, "verdict": "balanced"}

    plan = Plan(steps=steps, images_per_step=1, save_every=2, evaluate_every=2, log_every=2)
    one = torch.tensor(1.0)
    train(run, plan, {"model": model}, lambda k: {"loss": one, "step_applied": one}, look, "toy")


def test_wandb_is_told_numbers_words_and_pictures(tmp_path, wandb):
    train_toy(tmp_path / "run", {"seed": 3, "wandb": "icons"})
    (call,) = wandb.calls
    assert call["project"] == "icons" and call["name"] == "run" and call["config"]["seed"] == 3
    assert (4, {"psnr": 24.0}) in wandb.logged
    assert (4, {"preview": "image of step-0000004.png"}) in wandb.logged
    assert wandb.summary == {"verdict": "balanced"} and wandb.finished == 1


def test_a_resumed_run_goes_on_under_its_name_over_there(tmp_path, wandb):
    train_toy(tmp_path / "run", {"wandb": "icons"})
    train_toy(tmp_path / "run", {"wandb": "icons"})
    first, second = wandb.calls
    assert first["id"] == second["id"] and second["resume"] == "allow"


def test_wandb_is_not_touched_unless_asked_for(tmp_path, wandb):
    train_toy(tmp_path / "run", {"wandb": None})
    assert not wandb.calls


def test_wandb_may_be_left_out_when_a_run_is_resumed(tmp_path, wandb):
    Run(tmp_path / "run", {"seed": 0, "wandb": "icons"})
    Run(tmp_path / "run", {"seed": 0, "wandb": None})


def test_missing_wandb_ends_with_the_command_that_installs_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ValueError, match="pip install wandb"):
        open_loggers(tmp_path, 0, {"wandb": "icons"})


def test_wandb_that_does_not_start_ends_with_the_ways_out(tmp_path, wandb, monkeypatch):
    def fail(**_):
        raise wandb.Error("no key")

    monkeypatch.setattr(wandb, "init", fail)
    with pytest.raises(ValueError, match=r"no key.*WANDB_MODE=offline"):
        open_loggers(tmp_path, 0, {"wandb": "icons"})


def test_tensorboard_shows_numbers_words_and_pictures(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train_toy(tmp_path / "run", {})
    events = EventAccumulator(str(tmp_path / "run" / "tb")).Reload()
    assert [event.value for event in events.Scalars("psnr")] == [22.0, 24.0]
    image = events.Images("preview")[-1]
    assert (image.step, image.width, image.height) == (4, 8, 6)
    assert events.Tags()["tensors"] == ["verdict/text_summary"]


def test_without_tensorboard_the_file_is_written_all_the_same(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    assert open_loggers(tmp_path, 0, {}) == []
    train_toy(tmp_path / "run", {})
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert {"step": 4, "psnr": 24.0, "verdict": "balanced"} in map(json.loads, lines)


def test_words_are_cut_back_with_the_numbers_on_resuming(tmp_path):
    Run(tmp_path, {})
    file = MetricsFile(tmp_path, 0)
    file.write(2, {"psnr": 1.0, "verdict": "dead"})
    file.write(4, {"psnr": float("nan"), "verdict": "balanced"})
    kept = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[1])
    assert kept == {"step": 4, "psnr": None, "verdict": "balanced"}
    MetricsFile(tmp_path, 2)
    assert "balanced" not in (tmp_path / "metrics.jsonl").read_text()
