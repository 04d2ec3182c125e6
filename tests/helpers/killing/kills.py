"""Run work in forked processes and kill them with SIGKILL before a change to a file.

The process that forks must not have run a backward pass, because the threads of PyTorch do not
exist in the child. So the tests start programs (killed_trainings.py, killed_saves.py) that fork.
"""

import io
import itertools
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import torch

# Audit events of Python that announce a change to a file or a folder. The first argument is a path.
CHANGES = {
    "latentsmith.exchange",
    "open",
    "os.chmod",
    "os.link",
    "os.mkdir",
    "os.remove",
    "os.rename",
    "os.rmdir",
    "os.symlink",
    "os.utime",
}


def forked(work: Callable[[], object], kill_after: float | None = None) -> bool:
    """Run `work` in a process of its own, and return whether it was not killed.

    kill_after: seconds until the process is killed.
    """
    child = os.fork()
    if child == 0:
        try:
            torch.set_num_threads(1)  # the threads of the parent do not exist here
            sys.stdout = sys.stderr = io.StringIO()
            work()
        except BaseException:
            os.write(2, traceback.format_exc().encode())
            os._exit(1)
        os._exit(0)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert status in (0, signal.SIGKILL), f"ended with {status}"
    return status == 0


def on_change(folder: Path, call: Callable[[str, str], object], ignore: str = "") -> None:
    """Call `call(event, path)` right before every change in `folder`, until the process ends.

    A path without a folder counts, too: it is a name inside a folder that is being removed.

    ignore: changes to paths with this text do not count.
    """

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if event not in CHANGES:
            return
        path = "" if isinstance(arguments[0], int) else os.fsdecode(arguments[0])
        if os.path.isabs(path) and not path.startswith(f"{folder}/"):
            return
        is_read = event == "open" and arguments[1] in ("r", "rb")
        if not is_read and not (ignore and ignore in path):
            call(event, path)

    sys.addaudithook(hook)


def kill_at(number: int, folder: Path, ignore: str = "") -> None:
    """Kill this process right before its number-th change in `folder`; see `on_change`."""
    count = itertools.count(1)

    def kill(event: str, path: str) -> None:
        if next(count) == number:
            os.kill(os.getpid(), signal.SIGKILL)

    on_change(folder, kill, ignore)


def recorded_changes(work: Callable[[], object], folder: Path) -> list[tuple[str, str]]:
    """Run `work` in a process of its own, and return event and path of its changes in `folder`."""
    reading, writing = os.pipe()

    def record() -> None:
        changes: list[tuple[str, str]] = []
        on_change(folder, lambda event, path: changes.append((event, path)))
        work()
        os.write(writing, json.dumps(changes).encode())

    assert forked(record)
    os.close(writing)
    with open(reading, "rb") as pipe:
        return [(event, path) for event, path in json.loads(pipe.read())]
