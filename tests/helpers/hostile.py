"""Inputs that somebody made to do harm, or that went wrong: run them, and see that nothing breaks.

A case runs in a process of its own, which a server forks that has imported everything already: so
it takes some 50 milliseconds. It goes through `run_main`, as a user's command does. What must never
come out is in `faults_of`; what is right for this input is a part of the case.

In the files of `tests/hostile/` a list of cases is the test:

    CASES = [
        HostileCase(
            "an empty picture",
            lambda folder: (folder / "in.png").write_bytes(b""),
            script("sample", "--reproduce", "in.png"),
            refused(r"in\\.png"),
        ),
    ]

    @pytest.mark.parametrize("case", in_ci(CASES, 10))
    def test_cases(case, world, tmp_path):
        check_case(case, world, tmp_path)
"""

import importlib
import os
import pickle
import re
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from tests.helpers.bad_calls import CONFIGS
from tests.helpers.processes import FORKSERVER
from training.cli import run_main

Work = Callable[[], object]  # picklable: a function on the top level of a module, or a partial
Check = Callable[["Outcome", Path], object]  # asserts what is right; gets the case's folder

SECONDS = 60.0  # a case may take on a busy machine; a second is usual
MEMORY = 2 * 10**9  # bytes by which the resident memory may grow
MESSAGE = 4100  # characters of an error message: foundation.errors cuts it at 4000
CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")  # a terminal obeys these
POLL = 0.005  # seconds between two looks at the memory


@dataclass(frozen=True)
class Outcome:
    """How a case ended, and what it printed."""

    status: int | None  # of exit; negative for a signal; None if it was killed for a limit
    output: str  # standard output
    errors: str  # standard error
    seconds: float
    memory: int  # bytes by which the resident memory grew at most
    killed: str = ""  # the limit that was passed, in words
    value: Any = None  # what the function returned, if it can be pickled
    written: list[str] = field(default_factory=list)  # paths that are new or changed

    @property
    def message(self) -> str:
        """The error message; all of standard error where it is not ours."""
        return self.errors[max(self.errors.rfind("\nerror: ") + 1, 0) :]

    @property
    def text(self) -> str:
        return self.output + self.errors


@dataclass(frozen=True)
class HostileCase:
    """An input, what is done with it, and what must come of it."""

    name: str
    make: Callable[[Path], object]  # writes the input into an empty folder
    work: Work  # runs with that folder as the current one; `world/` in it has models and data
    right: Check  # made by `refused`, or any function that asserts
    seconds: float = SECONDS
    memory: int = MEMORY

    def __str__(self) -> str:
        return self.name


# What a case does.


@dataclass(frozen=True)
class Script:
    """A command: `python NAME.py ARGUMENTS`; a name such as "recipes.caption" has its folder."""

    name: str
    arguments: tuple[str, ...]

    def __call__(self) -> None:
        sys.argv = [f"{self.name}.py", *self.arguments]
        importlib.import_module(self.name).main(list(self.arguments))


def script(name: str, *arguments: object) -> Script:
    return Script(name, tuple(map(str, arguments)))


# What is right.


def refused(pattern: str) -> Check:
    """Require the message of a mistake that the user can mend, and that nothing was written.

    pattern: of the message; numbers, names and paths, not the wording.
    """

    def check(outcome: Outcome, folder: Path) -> None:
        assert outcome.status == 2, f"ended with {outcome.status}:\n{outcome.text[-3000:]}"
        assert re.search(pattern, outcome.message, re.DOTALL), (
            f"no {pattern!r} in:\n{outcome.message}"
        )
        assert not outcome.written, f"written in spite of the refusal: {outcome.written[:10]}"

    return check


def accepted(pattern: str = "", check: Callable[[Path], object] | None = None) -> Check:
    """Require success.

    Args:
        pattern: of what is printed.
        check: gets the case's folder, and asserts what must be in it.
    """

    def check_success(outcome: Outcome, folder: Path) -> None:
        assert outcome.status == 0, f"ended with {outcome.status}:\n{outcome.text[-3000:]}"
        assert re.search(pattern, outcome.text, re.DOTALL), f"no {pattern!r} in:\n{outcome.text}"
        if check is not None:
            check(folder)

    return check_success


def either(pattern: str) -> Check:
    """Require success, or a refusal with such a message: where both are right."""

    def check(outcome: Outcome, folder: Path) -> None:
        if outcome.status:
            refused(pattern)(outcome, folder)

    return check


# Running.


def in_ci(cases: Sequence[HostileCase], count: int) -> list[Any]:
    """Return parameters of a test: `count` of the cases, evenly spread, and the others as slow."""
    names = [case.name for case in cases]
    assert len(set(names)) == len(names), "two cases have the same name"
    chosen = {round(k * (len(cases) - 1) / max(count - 1, 1)) for k in range(count)}
    return [
        pytest.param(case, id=case.name, marks=() if k in chosen else pytest.mark.slow)
        for k, case in enumerate(cases)
    ]


def check_case(case: HostileCase, world: Path, folder: Path) -> Outcome:
    """Run a case in an empty folder, and assert that it ends as it must.

    world: models and data (the fixture of the same name), not to be changed.
    """
    (folder / "world").symlink_to(world)
    case.make(folder)
    outcome = run_case(case.work, folder, case.seconds, case.memory)
    faults = faults_of(outcome)
    assert not faults, "; ".join(faults) + f"\n{outcome.text[-3000:]}"
    case.right(outcome, folder)
    return outcome


def faults_of(outcome: Outcome) -> list[str]:
    """List what no input may ever cause."""
    faults = []
    if outcome.killed:
        faults.append(outcome.killed)
    elif outcome.status is not None and outcome.status < 0:
        faults.append(f"died of {signal.Signals(-outcome.status).name}")
    if "Traceback (most recent call last)" in outcome.errors:
        faults.append("a traceback")
    if len(outcome.message) > MESSAGE:
        faults.append(f"a message of {len(outcome.message)} characters")
    if found := CONTROL.search(outcome.text):
        faults.append(f"the control character {found[0]!r} reaches the terminal")
    return faults


def run_case(work: Work, folder: Path, seconds: float, memory: int = MEMORY) -> Outcome:
    """Run work in a process of its own, in a folder, within limits of time and memory."""
    before = tree(folder)
    output, errors = folder.with_name(f"{folder.name}.out"), folder.with_name(f"{folder.name}.err")
    receiver, sender = FORKSERVER.Pipe(duplex=False)
    process = FORKSERVER.Process(
        target=run_in_child, args=(work, str(folder), str(output), str(errors), sender)
    )
    process.start()
    sender.close()
    start = time.monotonic()
    watched = watch(cast(int, process.pid), seconds, memory, lambda: process.exitcode is not None)
    process.join()
    value = None
    with suppress(EOFError):
        value = pickle.loads(receiver.recv_bytes()) if receiver.poll() else None
    receiver.close()
    texts = [file.read_text(errors="replace") if file.exists() else "" for file in (output, errors)]
    return Outcome(
        None if watched.killed else process.exitcode,
        *texts,
        time.monotonic() - start,
        watched.growth,
        watched.killed,
        value,
        [name for name, stat in tree(folder).items() if before.get(name) != stat],
    )


@dataclass
class Watched:
    """What was seen of a process."""

    growth: int = 0
    killed: str = ""


def watch(
    process: int,
    seconds: float,
    memory: int,
    is_over: Callable[[], bool],
    progress: Callable[[], object] = lambda: None,
) -> Watched:
    """Wait for a process; kill it and its children when they take too much time or memory.

    progress: the limit of time begins again whenever what this returns has changed.
    """
    seen, since = progress(), time.monotonic()
    base, watched = resident(process), Watched()
    while not is_over():
        if (now := progress()) != seen:
            seen, since = now, time.monotonic()
        members = list(descendants(process))
        grown = sum(max(resident(member) - base, 0) for member in members)
        watched.growth = max(watched.growth, grown)
        if watched.growth > memory:
            watched.killed = f"memory grew by {watched.growth / 1e9:.1f} GB"
        elif time.monotonic() - since > seconds:
            watched.killed = f"no end after {seconds:.0f} seconds"
        if watched.killed:
            for member in members:
                with suppress(ProcessLookupError):
                    os.kill(member, signal.SIGKILL)
            break
        time.sleep(POLL)
    return watched


def resident(process: int) -> int:
    """Return the bytes of memory that a process had at most; 0 once it has ended."""
    try:
        with open(f"/proc/{process}/status") as file:
            words = next((line.split() for line in file if line.startswith("VmHWM")), ["", "0"])
            return int(words[1]) * 1024
    except (FileNotFoundError, ProcessLookupError):
        return 0


def descendants(process: int) -> Iterator[int]:
    """Yield a process and all that it started."""
    yield process
    try:
        with open(f"/proc/{process}/task/{process}/children") as file:
            children = [int(word) for word in file.read().split()]
    except (FileNotFoundError, ProcessLookupError):
        return
    for child in children:
        yield from descendants(child)


def run_in_child(work: Work, folder: str, output: str, errors: str, pipe: Connection) -> None:
    """Run work as a script runs, with its output in files; ends the process."""
    redirect(output, errors)
    os.chdir(folder)
    os.environ.pop("LATENTSMITH_TRACEBACK", None)
    torch.set_num_threads(1)  # the threads of the server do not exist here
    config = CONFIGS.get(sys.modules.get(work.name)) if isinstance(work, Script) else None
    status: object = 0
    try:
        run_main(lambda: send(pipe, work()), config)
    except SystemExit as stop:
        status = 0 if stop.code is None else stop.code
        if not isinstance(status, int):
            print(status, file=sys.stderr)
    except BaseException:
        status = 1
        traceback.print_exc()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(status if isinstance(status, int) else 1)


def redirect(output: str, errors: str) -> None:
    """Write both streams to files, as a terminal in UTF-8 would get them."""
    for number, file in ((1, output), (2, errors)):
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, number)
        os.close(descriptor)
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = open(  # noqa: SIM115
        2, "w", encoding="utf-8", errors="backslashreplace", closefd=False
    )


def send(pipe: Connection, value: object) -> None:
    """Send what the work returned, if it is small and can be pickled."""
    with suppress(Exception):
        content = pickle.dumps(value)
        if len(content) < 60_000:  # what a pipe holds
            pipe.send_bytes(content)


def tree(folder: Path) -> dict[str, tuple[int, int]]:
    """Return size and time of every file and folder below.

    Not of the index beside data, nor of the lock of a run, which says who trained last.
    """
    found: dict[str, tuple[int, int]] = {}
    for root, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if name != ".latentsmith"]
        for name in [*folders, *files]:
            if name == "run.lock":
                continue
            path = os.path.join(root, name)
            stat = os.lstat(path)
            time_of = 0 if name in folders else stat.st_mtime_ns
            found[os.path.relpath(path, folder)] = (stat.st_size * (name in files), time_of)
    return found
