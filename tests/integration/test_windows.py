"""What Windows refuses, simulated on Linux: none of it keeps anything from working."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.windows import environment

ROOT = Path(__file__).parents[2]
CHEAP = ("simulation", "replacing", "toy_training", "printing")
SLOW = ("locking", "workers")


def call(*command: object) -> str:
    """Run Python in the mode, and return what it printed."""
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=ROOT,
        capture_output=True,
        encoding="cp1252",
        env=environment(),
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_files_and_a_small_training(tmp_path):
    printed = call("-m", "tests.helpers.windows.programs", tmp_path, *CHEAP)
    assert [f"{name} done" in printed for name in CHEAP] == [True] * len(CHEAP)
    assert "snowman \\u2603" in printed


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_processes_that_are_not_forked(tmp_path, name):
    assert f"{name} done" in call("-m", "tests.helpers.windows.programs", tmp_path, name)
