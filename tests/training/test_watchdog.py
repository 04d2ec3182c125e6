"""A rank that dies, fails or hangs ends all of them, and one message names it and its activity."""

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import torch
import torch.distributed as dist

import train_vae
from foundation import collectives
from foundation.errors import UserError
from tests.helpers.processes import exit_statuses
from training.cli import run_main
from training.watchdog import report_finished, report_progress


def three_steps(trouble: Callable[[Path], None], folder: Path, timeout: float = 1800.0) -> None:
    """Do three steps; in the third, rank 1 gets into trouble while rank 0 waits for it."""

    def main() -> None:
        for step in range(1, 4):
            report_progress("reading images", step=step, timeout=timeout)
            if step == 3 and collectives.rank() == 1:
                trouble(folder)
            report_progress("forward and backward")
            dist.all_reduce(torch.zeros(4))
        report_finished()

    run_with_output_in(folder, main)


def run_with_output_in(folder: Path, main: Callable[[], None]) -> None:
    """Run as a script does. stderr, the process number and torchrun's error file go to `folder`."""
    rank = os.environ["RANK"]
    (folder / f"process-{rank}").write_text(str(os.getpid()))
    os.environ["TORCHELASTIC_ERROR_FILE"] = str(folder / f"error-{rank}.json")
    with (folder / f"stderr-{rank}").open("w", buffering=1) as file, redirect_stderr(file):
        run_main(main)


def stderr_of_both(folder: Path) -> str:
    return "\n".join((folder / f"stderr-{rank}").read_text() for rank in range(2))


def do_nothing(folder: Path) -> None:
    pass


def test_ranks_without_trouble_print_nothing(tmp_path):
    assert exit_statuses(three_steps, do_nothing, tmp_path) == [0, 0]
    assert not stderr_of_both(tmp_path).strip()


def die(folder: Path) -> None:
    """Die by SIGKILL. torchrun, which notices, then sends SIGTERM to the other rank."""
    other = (folder / "process-0").read_text()
    subprocess.Popen(["sh", "-c", f"sleep 0.15; kill -TERM {other}"], start_new_session=True)
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_rank_is_named_by_another_one(tmp_path):
    assert exit_statuses(three_steps, die, tmp_path) == [1, -signal.SIGKILL]
    text = stderr_of_both(tmp_path)
    process = (tmp_path / "process-1").read_text()
    assert re.search(rf"rank 1 of 2 \(.*, process {process}\).*step 3: reading images", text)
    assert text.count("error:") == 1


def fail(folder: Path) -> None:
    raise UserError("no such file: 7.png")


def test_a_failing_rank_reports_its_error_alone(tmp_path):
    assert exit_statuses(three_steps, fail, tmp_path) == [1, 2]
    text = stderr_of_both(tmp_path)
    message = "error: no such file: 7.png\n(rank 1 of 2, in step 3: reading images)"
    assert message in text
    assert text.count("error:") == 1


def test_torchrun_is_told_which_rank_failed_first(tmp_path):
    exit_statuses(three_steps, fail, tmp_path)
    record = json.loads((tmp_path / "error-1.json").read_text())["message"]
    assert "7.png" in record["message"] and "step 3: reading images" in record["message"]
    assert abs(int(record["extraInfo"]["timestamp"]) - time.time()) < 300
    assert not (tmp_path / "error-0.json").exists()


def crash(folder: Path) -> None:
    raise KeyError("a bug")


def test_a_rank_with_a_bug_is_named_before_its_traceback(tmp_path):
    """The traceback itself is printed by the interpreter, past the file of this test."""
    assert exit_statuses(three_steps, crash, tmp_path) == [1, 1]
    text = stderr_of_both(tmp_path)
    assert "rank 1 of 2" in text and "step 3: reading images" in text and "rank 0" not in text
    assert "a bug" in (tmp_path / "error-1.json").read_text()


def hang(folder: Path) -> None:
    time.sleep(60)


def test_a_hanging_rank_is_named_with_what_the_others_wait_in(tmp_path):
    assert exit_statuses(three_steps, hang, tmp_path, 1.0) == [1, 1]
    text = stderr_of_both(tmp_path)
    assert re.search(r"rank 1 of 2 .*step 3: reading images for \d+ seconds", text)
    assert "step 3: forward and backward" in text
    assert text.count("error:") == 1


def refuse(folder: Path) -> None:
    def main() -> None:
        raise UserError("there is no preset sd99.")

    run_with_output_in(folder, main)


def test_an_error_of_all_ranks_is_printed_once(tmp_path):
    assert all(status in (1, 2) for status in exit_statuses(refuse, tmp_path))
    assert stderr_of_both(tmp_path).count("sd99") == 1


def give_unknown_flags(folder: Path) -> None:
    run_with_output_in(folder, lambda: train_vae.main(["--data", "d", "--out", "o", "--lr", "1"]))


def ask_for_help(folder: Path) -> None:
    with (folder / f"stdout-{os.environ['RANK']}").open("w") as file, redirect_stdout(file):
        run_with_output_in(folder, lambda: train_vae.main(["--help"]))


def test_usage_errors_and_help_are_printed_by_one_rank(tmp_path):
    assert exit_statuses(give_unknown_flags, tmp_path) == [2, 2]
    first, second = ((tmp_path / f"stderr-{rank}").read_text() for rank in range(2))
    assert "--lr" in first and first.count("is called --learning-rate here") == 1
    assert not second
    assert exit_statuses(ask_for_help, tmp_path) == [0, 0]
    first, second = ((tmp_path / f"stdout-{rank}").read_text() for rank in range(2))
    assert first.startswith("python train_vae.py") and not second
