"""A rank that dies, fails or hangs ends all of them, and is named with what it was doing."""

import os
import re
import signal
import subprocess
import time
from contextlib import redirect_stderr

import torch
import torch.distributed as dist

from foundation import collectives
from tests.helpers.processes import exit_statuses
from training.cli import run_main
from training.watchdog import Here, Watch, finished, phase


def program(trouble, folder, patience: float = 1800.0) -> None:
    """Three steps; in the third, rank 1 gets into trouble while rank 0 waits for it."""
    Watch.patience = patience

    def main() -> None:
        for step in range(1, 4):
            phase("reading images", step=step, limited=True)
            if step == 3 and collectives.rank() == 1:
                trouble()
            phase("forward and backward")
            dist.all_reduce(torch.zeros(4))
        finished()

    rank = os.environ["RANK"]
    with (folder / f"{rank}.txt").open("w", buffering=1) as file, redirect_stderr(file):
        run_main(main)


def said(folder) -> str:
    return "\n".join((folder / f"{rank}.txt").read_text() for rank in range(2))


def nothing() -> None:
    pass


def test_all_is_quiet_when_all_goes_well(tmp_path):
    assert exit_statuses(program, nothing, tmp_path) == [0, 0]
    assert not said(tmp_path).strip()


def die() -> None:
    """And torchrun, which notices, tells the other rank to end."""
    Here.watch.listen()
    later = f"sleep 0.15; kill -TERM {Here.watch.signs[0].process}"
    subprocess.Popen(["sh", "-c", later], start_new_session=True)
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_rank_that_is_killed_is_named_by_another(tmp_path):
    assert exit_statuses(program, die, tmp_path) == [1, -signal.SIGKILL]
    found = said(tmp_path)
    assert re.search(r"rank 1 of 2 \(.*, process \d+\) is dead.*step 3: reading images", found)
    assert found.count("error:") == 1


def fail() -> None:
    raise ValueError("no such file: 7.png")


def test_a_rank_that_fails_says_so_and_the_others_end(tmp_path):
    assert exit_statuses(program, fail, tmp_path) == [1, 2]
    found = said(tmp_path)
    assert "error: no such file: 7.png\n(rank 1 of 2, in step 3: reading images)" in found
    assert found.count("error:") == 1


def hang() -> None:
    time.sleep(60)


def test_a_rank_that_hangs_is_named(tmp_path):
    assert exit_statuses(program, hang, tmp_path, 1.0) == [1, 1]
    found = said(tmp_path)
    assert re.search(r"rank 1 of 2 .* has been in step 3: reading images for \d+ seconds", found)
    assert "the others wait in step 3: forward and backward" in found
    assert found.count("error:") == 1


def refuse_all(folder) -> None:
    def main() -> None:
        raise ValueError("there is no such preset.")

    rank = os.environ["RANK"]
    with (folder / f"{rank}.txt").open("w", buffering=1) as file, redirect_stderr(file):
        run_main(main)


def test_what_all_ranks_find_wrong_is_said_once(tmp_path):
    assert all(status in (1, 2) for status in exit_statuses(refuse_all, tmp_path))
    assert said(tmp_path).count("there is no such preset") == 1
