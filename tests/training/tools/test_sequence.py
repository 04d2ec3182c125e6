"""Trainings one after the other, in processes of their own: started, found again, stopped."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from foundation.errors import UserError
from training.run_lock import LOCK, holder_of
from training.tools import sequence
from training.tools.background import (
    LOG,
    check_run_name,
    read_log,
    reason_of_failure,
    start_sequence,
    stop_training,
    write_commands,
)
from training.tools.run_folders import find_running, find_runs
from training.tools.sequence import busy_before, find_sequences, read_state, run_sequence

# Stands for a training: writes a run folder, holds its lock, and ends cleanly at SIGTERM.
TRAINING = """
import json, signal, sys, time
from pathlib import Path
from training.run_lock import RunLock

out, seconds, status = Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
def stop(*_):
    (out / "saved").touch()
    sys.exit(130)
signal.signal(signal.SIGTERM, stop)
out.mkdir(parents=True, exist_ok=True)
(out / "config.json").write_text(json.dumps({"loss": {}, "steps": 3}))
lock = RunLock(out)
print("trained in", out, flush=True)
time.sleep(seconds)
if status:
    print("error: the disk is on fire", file=sys.stderr)
sys.exit(status)
"""


@pytest.fixture
def drive(tmp_path, monkeypatch):
    """drive(folder, *flags): run a sequence in a process, whose trainings are the one above."""
    file = tmp_path / "stand_in.py"
    file.write_text(TRAINING)
    monkeypatch.setattr(sequence, "path_of", lambda script: file)
    code = (
        "import sys, pathlib, training.tools.sequence as s; "
        f"s.path_of = lambda script: pathlib.Path({str(file)!r}); s.main(sys.argv[1:])"
    )
    processes = []

    def start(folder, *flags):
        command = [sys.executable, "-c", code, str(folder), *flags]
        with (folder / LOG).open("ab") as log:
            processes.append(subprocess.Popen(command, stdout=log, stderr=log))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.wait()


def make(runs, name, *stages):
    """Write a sequence. stages: (seconds, exit status)."""
    folder = runs / name
    commands = [
        ("train_vae.py", str(folder / f"stage{k}"), str(seconds), str(status))
        for k, (seconds, status) in enumerate(stages)
    ]
    write_commands(folder, commands)
    return folder


def wait_until(condition, seconds=20.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)


def test_the_stages_run_one_after_the_other_and_a_failure_ends_them(tmp_path, drive):
    runs = tmp_path / "runs"
    good = make(runs, "good", (0, 0), (0, 0))
    assert read_state(good).name == "new"
    assert run_sequence(good, at_once=False) == 0
    assert read_state(good).name == "finished"
    bad = make(runs, "bad", (0, 0), (0, 2), (0, 0))
    assert drive(bad).wait() == 2
    state = read_state(bad)
    assert (state.name, state.stage) == ("failed", 1)
    assert reason_of_failure(bad) == "the disk is on fire"
    assert not (bad / "stage2").exists()
    assert "trained in" in read_log(bad)
    assert find_sequences(runs) == [bad, good]
    assert [run.name for run in find_runs(runs)] == ["stage0", "stage1", "stage0", "stage1"]


def test_a_sequence_is_found_stopped_and_continued(tmp_path, drive):
    runs = tmp_path / "runs"
    folder = make(runs, "one", (60, 0))
    process = drive(folder)
    wait_until(lambda: find_running(runs))
    assert read_state(folder).name == "running"
    assert holder_of(folder).process == process.pid
    with pytest.raises(UserError, match="is being trained already"):
        start_sequence(folder)
    stop_training(folder)
    assert process.wait() == sequence.STOPPED
    assert read_state(folder).name == "stopped"
    assert (folder / "stage0" / "saved").exists()
    assert not find_running(runs)
    with pytest.raises(UserError, match="nobody trains"):
        stop_training(folder)


def test_a_killed_sequence_is_stopped_and_its_training_is_still_found(tmp_path, drive):
    folder = make(tmp_path / "runs", "one", (60, 0))
    process = drive(folder)
    stage = folder / "stage0"
    wait_until(lambda: (stage / LOCK).exists() and holder_of(stage))
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert read_state(folder).name == "stopped"
    with pytest.raises(UserError, match="is being trained already"):
        start_sequence(folder)
    stop_training(folder)
    wait_until(lambda: holder_of(stage) is None)
    assert (stage / "saved").exists()


def test_the_second_waits_for_the_first_unless_it_is_to_run_at_once(tmp_path, drive):
    runs = tmp_path / "runs"
    first, second, third = (make(runs, name, (60, 0)) for name in ("first", "second", "third"))
    drive(first)
    wait_until(lambda: read_state(first).name == "running")
    waiting = drive(second)
    wait_until(lambda: read_state(second).waits_for == "first")
    drive(third, "--no-wait")
    wait_until(lambda: (third / "stage0" / LOCK).exists() and holder_of(third / "stage0"))
    stop_training(first)
    wait_until(lambda: read_state(second).waits_for == "third/stage0")
    stop_training(third)
    wait_until(lambda: read_state(second).name == "running")
    stop_training(second)
    assert waiting.wait() == sequence.STOPPED


def test_a_training_that_was_started_by_hand_is_waited_for(tmp_path, drive):
    runs = tmp_path / "runs"
    by_hand = [str(tmp_path / "stand_in.py"), str(runs / "vae"), "60", "0"]
    process = subprocess.Popen([sys.executable, *by_hand], stdout=subprocess.DEVNULL)
    try:
        wait_until(lambda: find_running(runs) == [runs / "vae"])
        folder = make(runs, "one", (0, 0))
        assert busy_before(folder, time.time()) == "vae"
        stop_training(runs / "vae")
        process.wait(10)
        assert busy_before(folder, time.time()) == ""
    finally:
        process.kill()
        process.wait()


def test_other_settings_under_the_same_name_are_refused(tmp_path):
    folder = tmp_path / "runs" / "one"
    commands = [("train_vae.py", "--data", "data")]
    write_commands(folder, commands)
    write_commands(folder, commands)
    with pytest.raises(UserError, match="other settings"):
        write_commands(folder, [("train_vae.py", "--data", "other")])
    (tmp_path / "runs" / "else").mkdir()
    (tmp_path / "runs" / "else" / "photo.png").touch()
    with pytest.raises(UserError, match="with other files"):
        write_commands(tmp_path / "runs" / "else", commands)
    (tmp_path / "outside").mkdir()
    (tmp_path / "runs" / "link").symlink_to(tmp_path / "outside")
    with pytest.raises(UserError, match="is a link"):
        write_commands(tmp_path / "runs" / "link", commands)
    assert not any((tmp_path / "outside").iterdir())


@pytest.mark.parametrize(
    "command", [["rm", "-rf"], ["../train_vae.py"], [], ["/bin/train_vae.py"], "train_vae.py"]
)
def test_only_trainings_are_run(tmp_path, command):
    (tmp_path / "sequence.json").write_text(json.dumps({"commands": [command]}))
    with pytest.raises(UserError):
        run_sequence(tmp_path, at_once=True)


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/b", "a\\b", "../a", ".hidden", "-rf", "a" * 61, "a\nb", "con", "a:b"]
)
def test_names_that_lead_elsewhere_are_refused(name):
    with pytest.raises(UserError, match="cannot be the name"):
        check_run_name(name)
    assert check_run_name("red flowers 2") == "red flowers 2"


def test_runs_behind_links_that_lead_out_are_left_out(tmp_path):
    runs, outside = tmp_path / "runs", tmp_path / "outside" / "vae"
    for folder in (runs / "inside", outside):
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps({"loss": {}}))
    (runs / "link").symlink_to(outside)
    (runs / "near").symlink_to(runs / "inside")
    assert find_runs(runs) == [runs / "inside", runs / "near"]


def test_the_holder_of_a_lock_is_only_a_process_that_lives(tmp_path):
    assert holder_of(tmp_path) is None
    (tmp_path / LOCK).write_text(json.dumps({"host": os.uname().nodename, "process": os.getpid()}))
    assert holder_of(tmp_path) is None  # it lives, and does not have the lock
    (tmp_path / LOCK).write_text("{")
    assert holder_of(tmp_path) is None
