"""What the system did is no bug, and is said in one line."""

import re

import pytest
import torch

from training.cli import explain, run_main
from training.memory import describe_failure

ALLOCATION = (
    "[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory: you "
    "tried to allocate 4000000000000 bytes. Error code 12 (Cannot allocate memory)"
)
WORKER = "DataLoader worker (pid(s) 4711, 4712) exited unexpectedly"


@pytest.mark.parametrize(
    ("error", "pattern"),
    [
        (RuntimeError(ALLOCATION), "--batch-size"),
        (RuntimeError("MPS backend out of memory (allocated: 8 GB)"), "--batch-size"),
        (MemoryError(), "--batch-size"),
        (RuntimeError(WORKER), "4711, 4712.*--workers.*same command"),
        (RuntimeError("DataLoader worker (pid 12) is killed by signal: Killed."), "12.*--workers"),
    ],
)
def test_failures_of_memory_are_explained(error, pattern, capsys):
    def fail():
        raise error

    with pytest.raises(SystemExit) as stopped:
        run_main(fail)
    assert stopped.value.code == 2
    text = capsys.readouterr().err
    assert len(text.splitlines()) == 1
    assert re.search(pattern, text)


def test_an_allocation_that_fails_is_recognized():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**46, dtype=torch.float64)
    assert describe_failure(caught.value)


def test_bugs_stay_bugs():
    assert not describe_failure(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not describe_failure(ValueError("out of memory"))
    assert explain(OSError("x")) == "x"
