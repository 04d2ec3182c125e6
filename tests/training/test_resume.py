"""Trainings that are killed and resumed end like trainings that nobody killed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run_killer(*paths: Path) -> dict:
    command = [sys.executable, "-m", "tests.helpers.killing.killed_trainings", *map(str, paths)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_a_kill_before_any_change_of_a_file_or_at_a_random_time_changes_nothing(tmp_path):
    """Compare every byte of the last state and every number of metrics.jsonl."""
    result = run_killer(tmp_path)
    assert result["kills"] > 30
    assert result["wrong"] == {}


@pytest.mark.slow
def test_killing_every_stage_in_a_save_and_in_a_step_changes_nothing(world, tmp_path):
    """With workers, random crops and flips, accumulation and a discriminator."""
    assert run_killer(tmp_path, world)["wrong"] == {}
