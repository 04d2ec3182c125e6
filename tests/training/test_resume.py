"""Exact resume, proved: trainings killed with SIGKILL end as those that nobody killed."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def kills(*places: Path) -> dict:
    command = [sys.executable, "-m", "tests.helpers.kills", *map(str, places)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_killed_before_any_change_of_a_file_and_at_random_times(tmp_path):
    """Every byte of the last state and every number of metrics.jsonl, and nothing left over."""
    result = kills(tmp_path)
    assert result["kills"] > 30
    assert result["wrong"] == {}


def test_every_stage_killed_in_a_save_and_in_a_step(world, tmp_path):
    """With workers, random crops and flips, accumulation and a discriminator."""
    assert kills(tmp_path, world)["wrong"] == {}
