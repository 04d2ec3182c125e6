"""Disks that fill up, turn read-only or vanish: the last good state stays, and one message says so.

Real ones where the tests may mount; a full disk by a limit on files is in test_bad_runs.py.
"""

import errno
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.helpers.bad_calls import tree, unchanged
from tests.helpers.toy_training import Toy
from training.checkpoint import save_state, saved_states
from training.cli import run_main


def mount(*arguments: object) -> None:
    subprocess.run(["mount", *map(str, arguments)], check=True, capture_output=True)


@pytest.fixture
def disk(tmp_path) -> Iterator[Path]:
    """A megabyte of memory as a disk of its own."""
    place = tmp_path / "disk"
    place.mkdir()
    try:
        mount("-t", "tmpfs", "-o", "size=1m", "none", place)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("mounting is not allowed here")
    yield place
    subprocess.run(["umount", "-l", str(place)], capture_output=True)


@pytest.fixture(autouse=True)
def no_tensorboard(monkeypatch):
    """Its open file would keep a disk from being remounted."""
    monkeypatch.setattr("training.loop.open_loggers", lambda *_: [])


class Ballast:
    """A part of the state that takes room."""

    def __init__(self, numbers: int):
        self.state = {"x": torch.ones(numbers)}

    def state_dict(self) -> dict:
        return self.state

    def load_state_dict(self, state: dict) -> None:
        self.state = state


def at(toy: Toy, number: int, event) -> Toy:
    """Lets something happen before this step."""
    step = toy.step
    toy.step = lambda k: (event() if k == number else None, step(k))[1]
    return toy


def refused(capsys, toy: Toy) -> str:
    with pytest.raises(SystemExit) as stopped:
        run_main(toy.train)
    message = capsys.readouterr().err
    assert stopped.value.code == 2 and message.count("error: ") == 1, message
    return message[message.index("error: ") :]


def goes_on_as_if_nothing_had_been(folder: Path, toy: Toy) -> None:
    toy.train()
    straight = Toy(folder / "straight")
    straight.train()
    assert toy.metrics() == straight.metrics()
    pairs = zip(toy.weights(), straight.weights(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_full(disk, tmp_path, capsys):
    """The second state does not fit beside the first."""
    toy = Toy(disk / "run")
    toy.parts["ballast"] = Ballast(120_000)
    message = refused(capsys, toy)
    assert "the disk is full" in message and "Free some space" in message
    assert [state.name for state in saved_states(disk / "run" / "state")] == ["step-0000005"]
    assert sorted(path.name for path in (disk / "run" / "state").iterdir()) == ["step-0000005"]
    mount("-o", "remount,size=8m", disk)
    again = Toy(disk / "run")
    again.parts["ballast"] = Ballast(120_000)
    goes_on_as_if_nothing_had_been(tmp_path, again)


def test_read_only(disk, tmp_path, capsys):
    toy = at(Toy(disk / "run"), 7, lambda: mount("-o", "remount,ro", disk))
    message = refused(capsys, toy)
    assert "Read-only file system" in message and "untouched" in message
    with unchanged(disk):
        assert "Read-only file system" in refused(capsys, Toy(disk / "run"))
    mount("-o", "remount,rw", disk)
    goes_on_as_if_nothing_had_been(tmp_path, Toy(disk / "run"))


def test_unmounted(disk, tmp_path, capsys):
    """What is written afterwards must not go to the disk below the mount point."""
    place = tmp_path / "place"
    place.mkdir()
    mount("--bind", disk, place)
    unmount = ["umount", "-l", str(place)]
    toy = at(Toy(place / "run"), 7, lambda: subprocess.run(unmount, check=True))
    assert "no longer there" in refused(capsys, toy)
    assert list(place.iterdir()) == []
    mount("--bind", disk, place)
    goes_on_as_if_nothing_had_been(tmp_path, Toy(place / "run"))
    subprocess.run(unmount, check=True)


def test_a_run_folder_that_is_moved_away(tmp_path, capsys):
    """As a vanished disk, where no test may mount."""
    run, away = tmp_path / "run", tmp_path / "away"
    message = refused(capsys, at(Toy(run), 7, lambda: shutil.move(run, away)))
    assert f"the run folder {run} is no longer there" in message
    assert not run.exists()
    shutil.move(away, run)
    goes_on_as_if_nothing_had_been(tmp_path, Toy(run))


@pytest.mark.parametrize("number", [errno.EROFS, errno.EIO, errno.ENOSPC])
@pytest.mark.parametrize("call", ["fsync", "replace", "mkdir"])
def test_a_save_that_fails_anywhere_leaves_the_last_state(tmp_path, monkeypatch, call, number):
    model = torch.nn.Linear(2, 2)
    save_state(tmp_path, 1, {"model": model})
    before = tree(tmp_path)

    def fail(*_, **__):
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patched:
        patched.setattr(os, call, fail)
        with pytest.raises(OSError, match=os.strerror(number)):
            save_state(tmp_path, 2, {"model": model})
    assert tree(tmp_path) == before
