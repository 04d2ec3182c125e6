"""The loop, the state on disk, EMA and learning rate, with a linear model for a network."""

import json
import math
import os
from pathlib import Path

import pytest
import torch
from torch import nn

from foundation.files import atomic_folder
from foundation.hashing import derived_seed
from tests.helpers.toy_training import Toy
from training.checkpoint import flatten, load_state, save_state, saved_states, unflatten
from training.ema import EMA
from training.optimizer import learning_rate
from training.run import Run


def test_interrupted_run_equals_straight_run(tmp_path):
    straight = Toy(tmp_path / "straight")
    straight.train()

    broken = Toy(tmp_path / "broken")
    whole_step = broken.step

    def failing(step):
        if step == 8:
            raise RuntimeError("power cut")
        return whole_step(step)

    broken.step = failing
    with pytest.raises(RuntimeError, match="power cut"):
        broken.train()
    resumed = Toy(tmp_path / "broken")
    resumed.train()

    assert all(
        torch.equal(a, b) for a, b in zip(straight.weights(), resumed.weights(), strict=True)
    )
    assert straight.metrics() == resumed.metrics()


def test_other_settings_are_refused_with_the_difference(tmp_path):
    Run(tmp_path / "run", {"rate": 0.1, "device": "cpu", "out": "a"})
    Run(tmp_path / "run", {"rate": 0.1, "device": "cuda", "out": "b"})  # says how, not what
    with pytest.raises(ValueError, match=r"rate: 0\.1 -> 0\.2"):
        Run(tmp_path / "run", {"rate": 0.2, "device": "cpu", "out": "a"})


def test_foreign_folder_is_refused(tmp_path):
    (tmp_path / "holiday.txt").write_text("mine")
    with pytest.raises(ValueError, match="not a run folder"):
        Run(tmp_path, {})
    assert [file.name for file in tmp_path.iterdir()] == ["holiday.txt"]


def test_state_survives_the_round_trip():
    tree = {"groups": [{"lr": 0.1, "params": [0, 1]}], "state": {3: {"x": torch.ones(1)}}}
    tensors = {}
    back = unflatten(json.loads(json.dumps(flatten(tree, tensors))), tensors)
    assert torch.equal(back["state"][3]["x"], torch.ones(1))
    assert back["groups"] == tree["groups"]


def test_full_disk_leaves_the_last_state_alone(tmp_path, monkeypatch):
    model = nn.Linear(2, 2)
    save_state(tmp_path, 1, {"model": model})

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("training.checkpoint.save_file", full)
    with pytest.raises(OSError, match="No space left"):
        save_state(tmp_path, 2, {"model": model})
    assert [path.name for path in tmp_path.iterdir()] == ["step-0000001"]
    assert load_state(tmp_path / "step-0000001", {"model": nn.Linear(2, 2)}) == 1


def test_all_is_on_the_disk_before_a_name_vouches_for_it(tmp_path, monkeypatch):
    """As a power cut demands: contents, then the name, then the folder that holds the name; and
    the metrics of a step before its state."""
    events, replace = [], os.replace

    def renamed(source, target):
        events.append(("named", Path(target), os.stat(source).st_ino))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", lambda file: events.append(("synced", os.fstat(file).st_ino)))
    monkeypatch.setattr(os, "replace", renamed)
    toy = Toy(tmp_path / "run")
    toy.train()
    states = saved_states(toy.run.states)
    assert len(states) == 2
    for folder in states:
        (moment,) = [k for k, event in enumerate(events) if event[1] == folder]
        before = {event[1] for event in events[:moment] if event[0] == "synced"}
        last = max(k for k, event in enumerate(events[:moment]) if event[0] == "named")
        now = {event[1] for event in events[last:moment] if event[0] == "synced"}
        files = [folder, *folder.iterdir()]
        assert len(files) == 2 * len(toy.parts) + 6
        assert {file.stat().st_ino for file in files} <= before
        assert (toy.run.path / "metrics.jsonl").stat().st_ino in now
        assert events[moment + 1] == ("synced", toy.run.states.stat().st_ino)


def test_states_of_other_parts_are_refused(tmp_path):
    folder = save_state(tmp_path, 1, {"model": nn.Linear(2, 2)})
    with pytest.raises(ValueError, match="other settings"):
        load_state(folder, {"network": nn.Linear(2, 2)})


def test_atomic_folder_keeps_the_old_folder_when_writing_fails(tmp_path):
    with atomic_folder(tmp_path / "model") as folder:
        (folder / "weights").write_text("good")
    with pytest.raises(OSError), atomic_folder(tmp_path / "model") as folder:
        (folder / "weights").write_text("half")
        raise OSError("disk full")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert (tmp_path / "model" / "weights").read_text() == "good"


def test_learning_rate_is_the_one_given():
    rates = [learning_rate(s, base=1.0, steps=100, warmup=10, cooldown=0.3) for s in range(100)]
    assert rates[0] == pytest.approx(0.1) and rates[9:70] == [1.0] * 61
    assert rates[85] == pytest.approx(0.5) and 0 < rates[99] < 0.01


def test_ema_halves_the_distance_in_its_halflife():
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    ema = EMA(model, halflife=50)
    nn.init.ones_(model.weight)
    for step in range(10_000, 10_050):  # past the warm-up
        ema.update(model, step)
    assert ema.module.weight.item() == pytest.approx(0.5, abs=1e-4)


def test_ema_moves_in_float32_when_the_weights_are_bfloat16():
    model = nn.Linear(1, 1, bias=False).bfloat16()
    nn.init.ones_(model.weight)
    ema = EMA(model, halflife=1000)
    nn.init.constant_(model.weight, 1.0078125)  # the next bfloat16
    ema.update(model, 10**9)
    moved = ema.module.weight.item() - 1
    assert moved == pytest.approx(0.0078125 * math.log(2) / 1000, rel=0.05)


def test_seeds_differ_by_purpose_and_repeat():
    seeds = {derived_seed(0, purpose, k) for purpose in ("train", "look") for k in range(100)}
    assert len(seeds) == 200 and derived_seed(0, "train", 5) == derived_seed(0, "train", 5)
