"""One training in a run folder at a time; a killed one does not block the next."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from foundation.errors import UserError
from training.run import Run
from training.run_lock import LOCK

HOLD = """
import sys, time
from pathlib import Path
from training.run import Run
run = Run(Path(sys.argv[1]), {"seed": 0}, lock=True)
print("locked", flush=True)
time.sleep(60)
"""


@pytest.fixture
def other(tmp_path):
    command = [sys.executable, "-c", HOLD, str(tmp_path / "run")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "locked\n"
        yield process
        process.kill()


def test_a_second_training_is_told_of_the_first_until_that_is_killed(tmp_path, other):
    run = tmp_path / "run"
    host = json.loads((run / LOCK).read_text())["host"]
    with pytest.raises(UserError, match=rf"process {other.pid} on {host} .*{time.strftime('%Y')}"):
        Run(run, {"seed": 0}, lock=True)
    Run(run, {"seed": 0})  # tools that read are let in
    os.kill(other.pid, signal.SIGKILL)
    other.wait()
    Run(run, {"seed": 0}, lock=True).release()


def test_the_lock_ends_with_the_run(tmp_path):
    run = Run(tmp_path / "run", {"seed": 0}, lock=True)
    with pytest.raises(KeyboardInterrupt), run.released_after_errors():
        raise KeyboardInterrupt
    done = subprocess.run(
        [sys.executable, "-c", HOLD.replace("60", "0"), str(tmp_path / "run")],
        capture_output=True,
        text=True,
    )
    assert done.stdout == "locked\n"


def test_a_folder_with_other_things_gets_no_lock(tmp_path):
    (tmp_path / "photo.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"config\.json"):
        Run(tmp_path, {"seed": 0}, lock=True)
    assert not (tmp_path / LOCK).exists()
