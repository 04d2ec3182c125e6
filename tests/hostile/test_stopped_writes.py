"""sample.py is killed, or its disk is full, before any change of a file: every picture is whole.

Changes are announced by Python before they happen, so a call is stopped right before each of them.
A write that fails in its middle is in tests/cli/test_bad_runs.py.
"""

import errno
import os
import re
import signal
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import pytest
from PIL import Image
from safetensors.torch import load_file

from generation.metadata import read_record
from tests.helpers.hostile import Outcome, Script, faults_of, run_case, script
from tests.helpers.killing.kills import kill_at, on_change

# What a call writes -> its flags. The first picture is of another call, and must stay.
KINDS: dict[str, tuple[object, ...]] = {
    "pictures and a grid": ("-n", 2),
    "latents beside them": ("-n", 2, "--save-latents"),
    "names without numbers": ("-n", 2, "--no-grid", "--name", "{seed}", "--format", "webp"),
    "previews": ("--steps", 2, "--preview-every", 1),
    "a video": ("-n", 2, "--interpolate", 2),
}
HIDDEN = re.compile(r"\..*\.partial")
AN_HOUR_AGO = 3700


def call(world: Path, *flags: object) -> Script:
    """The paths of models are absolute, so that only what is in the output folder has others."""
    fixed = ("red", "--model", world / "ldm", "--steps", 1, "--out", "out", "--device", "cpu")
    return script("sample", *fixed, *flags)


@dataclass(frozen=True)
class Stopped:
    """A call that ends right before a change to its output folder."""

    work: Script
    number: int
    how: str  # "killed", or "full": from this change on the disk takes nothing

    def __call__(self) -> None:
        folder = Path("out").absolute()
        folder.mkdir(exist_ok=True)
        if self.how == "killed":
            kill_at(self.number, folder)
        else:
            numbers = count(1)
            on_change(folder, lambda *change: refuse(*change, next(numbers) >= self.number))
        self.work()


def refuse(event: str, path: str, is_full: bool) -> None:
    """Fail as a full disk does; removing a file succeeds there, and so does opening a folder."""
    grows = event in ("open", "os.link", "os.mkdir", "os.rename")
    if is_full and grows and not os.path.isdir(path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)


def stopped(kind: str, number: int, how: str, world: Path, folder: Path) -> Outcome | None:
    """Stop a call before one of its changes, and check what is left; None if it had fewer."""
    folder.mkdir()
    out = folder / "out"
    out.mkdir()
    (out / "00000.png").write_bytes(b"of another call")
    outcome = run_case(Stopped(call(world, *KINDS[kind]), number, how), folder, 60.0)
    if outcome.status == 0:
        return None
    check_left(out)
    if how == "full":
        check_message(outcome)
    else:
        assert outcome.status == -signal.SIGKILL, outcome.text
    check_again(kind, world, folder)
    return outcome


def check_left(out: Path) -> int:
    """Require that what has a final name is whole; return the number of pictures."""
    pictures = 0
    for file in out.rglob("*"):
        if file.is_dir() or HIDDEN.fullmatch(file.name):
            continue
        if file.read_bytes() == b"of another call":
            assert file.name == "00000.png"
        elif file.suffix == ".safetensors":
            assert load_file(file)["latents"].isfinite().all()
        else:
            with Image.open(file) as image:
                image.load()
            if file.parent == out and not file.name.startswith("grid-"):
                assert read_record(file)["prompt"] == "red"
                pictures += 1
    return pictures


def check_message(outcome: Outcome) -> None:
    """Require one message, which names the file, and that says what to do."""
    assert outcome.status == 2 and not faults_of(outcome), outcome.text
    assert outcome.errors.count("error: ") == 1
    assert os.strerror(errno.ENOSPC) in outcome.message
    assert re.search(r"out/(previews|[\w/-]+\.(png|webp|gif|safetensors))\b", outcome.message)
    assert "partial" not in outcome.message  # a hidden name


def check_again(kind: str, world: Path, folder: Path) -> None:
    """Run the same command; where names are fixed, into another folder, as the message says."""
    out, flags = folder / "out", KINDS[kind]
    before = {file.name: file.read_bytes() for file in out.iterdir() if file.is_file()}
    for file in out.rglob(".*"):
        os.utime(file, (file.stat().st_mtime - AN_HOUR_AGO,) * 2)
    if "{seed}" in flags:
        flags = (*flags, "--out", "again")
    outcome = run_case(call(world, *flags), folder, 60.0)
    assert outcome.status == 0 and not faults_of(outcome), outcome.text
    assert check_left(folder / "again" if "again" in flags else out) >= 1
    if "again" not in flags:
        assert not [file for file in out.rglob(".*") if file.is_file()], "left over"
    shown = {name: content for name, content in before.items() if not HIDDEN.fullmatch(name)}
    assert all((out / name).read_bytes() == content for name, content in shown.items())


@pytest.mark.parametrize(("number", "how"), [(5, "killed"), (9, "full")])
def test_pictures_before_some_changes(world, tmp_path, number, how):
    assert stopped("latents beside them", number, how, world, tmp_path / "case")


@pytest.mark.slow
@pytest.mark.parametrize("how", ["killed", "full"])
@pytest.mark.parametrize("kind", KINDS)
def test_everything_before_any_change(world, tmp_path, kind, how):
    number = 1
    while stopped(kind, number, how, world, tmp_path / str(number)):
        number += 1
    print(kind, how, number - 1, "times")
    assert number > 3
