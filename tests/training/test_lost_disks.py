"""Disks that fill up, become read-only or vanish: the last state stays, and one message says so.

Where the tests may mount, the disks are real. tests/cli/test_bad_runs.py fills a disk by a limit.
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
    """Mount a megabyte of memory as a disk."""
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
    """Its open file would prevent remounting a disk."""
    monkeypatch.setattr("training.loop.open_loggers", lambda *_: [])


class Ballast:
    """An object whose state needs room on the disk."""

    def __init__(self, numbers: int):
        self.state = {"x": torch.ones(numbers)}

    def state_dict(self) -> dict:
        return self.state

    def load_state_dict(self, state: dict) -> None:
        self.state = state


def before_step(toy: Toy, number: int, event) -> Toy:
    """Let something happen before a step."""
    step = toy.step
    toy.step = lambda k: (event() if k == number else None, step(k))[1]
    return toy


def refused(capsys, toy: Toy) -> str:
    """Train, expect an error that a user can mend, and return its message."""
    with pytest.raises(SystemExit) as stopped:
        run_main(toy.train)
    message = capsys.readouterr().err
    assert stopped.value.code == 2 and message.count("error: ") == 1, message
    return message[message.index("error: ") :]


def assert_resumes_exactly(folder: Path, toy: Toy) -> None:
    """Train to the end, and compare with a training that was never interrupted."""
    toy.train()
    straight = Toy(folder / "straight")
    straight.train()
    assert toy.metrics() == straight.metrics()
    pairs = zip(toy.weights(), straight.weights(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_a_full_disk(disk, tmp_path, capsys):
    """The second state does not fit beside the first."""
    toy = Toy(disk / "run")
    toy.state["ballast"] = Ballast(120_000)
    message = refused(capsys, toy)
    assert os.strerror(errno.ENOSPC) in message
    assert [state.name for state in saved_states(disk / "run" / "state")] == ["step-0000005"]
    assert sorted(path.name for path in (disk / "run" / "state").iterdir()) == ["step-0000005"]
    mount("-o", "remount,size=8m", disk)
    again = Toy(disk / "run")
    again.state["ballast"] = Ballast(120_000)
    assert_resumes_exactly(tmp_path, again)


def test_a_disk_that_becomes_read_only(disk, tmp_path, capsys):
    toy = before_step(Toy(disk / "run"), 7, lambda: mount("-o", "remount,ro", disk))
    message = refused(capsys, toy)
    assert os.strerror(errno.EROFS) in message
    with unchanged(disk):
        assert os.strerror(errno.EROFS) in refused(capsys, Toy(disk / "run"))
    mount("-o", "remount,rw", disk)
    assert_resumes_exactly(tmp_path, Toy(disk / "run"))


def test_an_unmounted_disk(disk, tmp_path, capsys):
    """Later files must not be written to the disk below the mount point."""
    place = tmp_path / "place"
    place.mkdir()
    mount("--bind", disk, place)
    unmount = ["umount", "-l", str(place)]
    toy = before_step(Toy(place / "run"), 7, lambda: subprocess.run(unmount, check=True))
    assert str(place / "run") in refused(capsys, toy)
    assert list(place.iterdir()) == []
    mount("--bind", disk, place)
    assert_resumes_exactly(tmp_path, Toy(place / "run"))
    subprocess.run(unmount, check=True)


def test_a_run_folder_that_is_moved_away(tmp_path, capsys):
    """It stands for a vanished disk where tests may not mount."""
    run, away = tmp_path / "run", tmp_path / "away"
    message = refused(capsys, before_step(Toy(run), 7, lambda: shutil.move(run, away)))
    assert str(run) in message
    assert not run.exists()
    shutil.move(away, run)
    assert_resumes_exactly(tmp_path, Toy(run))


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
