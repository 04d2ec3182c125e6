"""The training loop: an interrupted run, and the order in which it writes to the disk."""

import os
from pathlib import Path

import pytest
import torch

from tests.helpers.toy_training import Toy
from training.checkpoint import saved_states


def test_an_interrupted_run_ends_as_an_unbroken_one(tmp_path):
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


def test_a_state_is_on_the_disk_before_it_gets_its_name(tmp_path, monkeypatch):
    """The contents, then the name, then the folder that holds the name, as a power cut may come at
    any time. The metrics of a step are there before its state."""
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
        assert len(files) == 2 * len(toy.state) + 6
        assert {file.stat().st_ino for file in files} <= before
        assert (toy.run.path / "metrics.jsonl").stat().st_ino in now
        assert events[moment + 1] == ("synced", toy.run.states.stat().st_ino)
