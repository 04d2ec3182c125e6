"""Fixtures of several test files. They import when used, so that other files start fast."""

import re
import sys
import time

import pytest
from hypothesis import settings

import tests

# Skipped on Windows and macOS. They fork, kill or limit processes, run torchrun, or read /proc.
LINUX_ONLY = [
    "cli/test_bad_runs.py",
    "dataset/test_latent_cache.py",
    "dataset/test_latent_cache_build.py",
    "foundation/test_collectives.py",
    "generation/test_compile.py",
    "hostile",  # the folder
    "integration/test_startup.py",
    "integration/test_windows.py",
    "interop/test_killed_saves.py",
    "training/test_data_parallel.py",
    "training/test_distributed.py",
    "training/test_lost_disks.py",
    "training/test_memory.py",
    "training/test_resume.py",
    "training/test_signals.py",
    "training/test_watchdog.py",
    "training/tools/test_sequence.py",
]
collect_ignore = [] if sys.platform == "linux" else LINUX_ONLY

# Run first, so that two processes of `make test` end at the same time.
LONGEST = ["integration/test_end_to_end.py", "generation/test_compile.py"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Move the longest files to the beginning; the order is otherwise kept."""
    items.sort(key=lambda item: not item.nodeid.startswith(tuple(f"tests/{n}" for n in LONGEST)))


tests.keep_writes_in_memory()


def pytest_runtest_setup() -> None:
    tests.Test.number += 1  # its calls are checked again


# The same examples in every run, and no limit of time on machines that do other work as well.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """A data folder and untrained models of every kind; not to be changed."""
    from tests.helpers.bad_calls import make_world

    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture
def refused(world, tmp_path, capsys, monkeypatch):
    """refused(script, pattern, *flags): with the flags a good call ends with such a message."""
    from tests.helpers.bad_calls import command, refusal, tree, unchanged

    monkeypatch.delenv("LATENTSMITH_TRACEBACK", raising=False)

    def call(script, pattern, *flags):
        with unchanged(world):
            message = refusal(capsys, script, command(script, world, tmp_path / "out", *flags))
        assert re.search(pattern, message, flags=re.DOTALL), message
        assert not tree(tmp_path), "something was written"

    return call


@pytest.fixture
def rehearsal(tmp_path):
    """rehearsal(seconds): the job of a part of benchmarks/gpu.py on the CPU, with so much time."""
    from benchmarks.gpu_parts.job import Job

    def make(seconds: float) -> Job:
        return Job(
            part="",
            device="cpu",
            rehearse=True,
            ends_at=time.time() + seconds,
            folder=str(tmp_path),
            out=str(tmp_path),
            data=None,
        )

    return make
