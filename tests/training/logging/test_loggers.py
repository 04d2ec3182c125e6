"""metrics.jsonl, TensorBoard and Weights & Biases; a stub stands for the latter."""

import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from PIL import Image
from torch import nn

from training.logging.loggers import open_loggers
from training.loop import Plan, train
from training.run import Run


class Stub(ModuleType):
    """The part of wandb that is used; it records all calls."""

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
    """Train with evaluations that return a number and a verdict, and write a preview."""
    run, model = Run(folder, config), nn.Linear(1, 1)

    def evaluate(step):
        Image.new("RGB", (8, 6), "red").save(run.preview(step))
        return {"psnr": 20.0 + step, "verdict": "balanced"}

    plan = Plan(steps=steps, images_per_step=1, save_every=2, evaluate_every=2, log_every=2)
    one = torch.tensor(1.0)
    train(
        run, plan, {"model": model}, lambda k: {"loss": one, "step_applied": one}, evaluate, "toy"
    )


def test_wandb_gets_numbers_texts_and_images(tmp_path, wandb):
    train_toy(tmp_path / "run", {"seed": 3, "wandb": "icons"})
    (call,) = wandb.calls
    assert call["project"] == "icons" and call["name"] == "run" and call["config"]["seed"] == 3
    assert (4, {"psnr": 24.0}) in wandb.logged
    assert (4, {"preview": "image of step-0000004.png"}) in wandb.logged
    assert wandb.summary == {"verdict": "balanced"} and wandb.finished == 1


def test_a_resumed_run_is_the_same_run_at_wandb(tmp_path, wandb):
    train_toy(tmp_path / "run", {"wandb": "icons"})
    train_toy(tmp_path / "run", {"wandb": "icons"})
    first, second = wandb.calls
    assert first["id"] == second["id"] and second["resume"] == "allow"


def test_wandb_is_not_used_unless_asked_for(tmp_path, wandb):
    train_toy(tmp_path / "run", {"wandb": None})
    assert not wandb.calls


def test_wandb_may_be_left_out_when_a_run_is_resumed(tmp_path, wandb):
    Run(tmp_path / "run", {"seed": 0, "wandb": "icons"})
    Run(tmp_path / "run", {"seed": 0, "wandb": None})


def test_without_wandb_installed_the_error_says_how_to_install_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ValueError, match="pip install wandb"):
        open_loggers(tmp_path, 0, {"wandb": "icons"})


def test_an_error_of_wandb_is_explained(tmp_path, wandb, monkeypatch):
    def fail(**_):
        raise wandb.Error("no key")

    monkeypatch.setattr(wandb, "init", fail)
    with pytest.raises(ValueError, match=r"no key.*WANDB_MODE=offline"):
        open_loggers(tmp_path, 0, {"wandb": "icons"})


def test_tensorboard_shows_numbers_texts_and_images(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train_toy(tmp_path / "run", {})
    events = EventAccumulator(str(tmp_path / "run" / "tb")).Reload()
    assert [event.value for event in events.Scalars("psnr")] == [22.0, 24.0]
    image = events.Images("preview")[-1]
    assert (image.step, image.width, image.height) == (4, 8, 6)
    assert events.Tags()["tensors"] == ["verdict/text_summary"]


def test_metrics_are_written_without_tensorboard(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    assert open_loggers(tmp_path, 0, {}) == []
    train_toy(tmp_path / "run", {})
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert {"step": 4, "psnr": 24.0, "verdict": "balanced"} in map(json.loads, lines)
