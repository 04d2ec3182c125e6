"""python -m tests.hostile.fuzz images --seconds 60 --seed 0

Changes good files at random and reads them, as long as asked. The outcome must be a value or a
UserError, in bounded time and memory. Every input follows from the seed and its number, so it can
be made again. What failed is saved.
"""

import argparse
import importlib
import os
import random
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import cast

import torch

from foundation.errors import LONGEST_MESSAGE, UserError, printable, shortened
from tests.helpers.hostile import CONTROL, MEMORY, MESSAGE, redirect, watch
from tests.helpers.processes import FORKSERVER
from tests.hostile.mutation import mutated
from training.cli import explain

TARGETS = Path(__file__).parent / "targets"
SECONDS = 10.0  # for one input
RESTART = 2000  # inputs per process; a fresh one now and then shows what leaks


@dataclass(frozen=True)
class FuzzTarget:
    """A reader, and good files to begin with. Its functions are on the top level of a module."""

    name: str  # of the file that is read, with its ending
    seeds: Callable[[], Sequence[bytes]]
    read: Callable[[Path], object]  # gets the file, alone in a folder
    mutate: Callable[[random.Random, Sequence[bytes]], bytes] = mutated
    memory: int = MEMORY
    mends: tuple[type[Exception], ...] = (UserError, OSError)  # what counts as refused


@dataclass
class Findings:
    """What a fuzz of one target gave."""

    inputs: int = 0
    accepted: int = 0
    refused: int = 0
    failures: dict[int, str] = field(default_factory=dict)  # number of the input -> what happened


def load_targets(area: str) -> list[FuzzTarget]:
    return importlib.import_module(f"tests.hostile.targets.{area}").TARGETS


def area_names() -> list[str]:
    return sorted(file.stem for file in TARGETS.glob("*.py") if file.stem != "__init__")


def nth_input(target: FuzzTarget, seeds: Sequence[bytes], seed: int, number: int) -> bytes:
    """Make an input; the first ones are the seeds themselves, which must be readable."""
    if number < len(seeds):
        return seeds[number]
    return target.mutate(random.Random(f"{seed} {number}"), seeds)


def fuzz(
    target: FuzzTarget,
    seed: int,
    seconds: float = 1e9,
    inputs: int = sys.maxsize,
    stop_after: int = 100,
) -> Findings:
    """Read changed files until the time is over, or so many are read.

    stop_after: failures; so many have few causes.
    """
    findings, end = Findings(), time.monotonic() + seconds
    with tempfile.TemporaryDirectory() as folder:
        while findings.inputs < inputs and time.monotonic() < end:
            count = min(RESTART, inputs - findings.inputs)
            run_inputs(target, seed, count, end, Path(folder), findings)
            if len(findings.failures) >= stop_after:
                break
    return findings


def run_inputs(
    target: FuzzTarget, seed: int, count: int, end: float, folder: Path, findings: Findings
) -> None:
    """Read some inputs in a process of its own, and add what came of them to the findings."""
    receiver, sender = FORKSERVER.Pipe(duplex=False)
    first = findings.inputs
    arguments = (target, seed, range(first, first + count), end, str(folder), sender)
    process = FORKSERVER.Process(target=read_inputs, args=arguments)
    process.start()
    sender.close()

    def receive() -> int:
        """Take in what the process has sent; return how many inputs are done."""
        try:
            while receiver.poll():
                number, fault, refused = receiver.recv()
                findings.inputs += 1
                findings.accepted += not (fault or refused)
                findings.refused += refused
                if fault:
                    findings.failures[number] = fault
        except EOFError:
            pass
        return findings.inputs

    def is_over() -> bool:
        return process.exitcode is not None

    watched = watch(cast(int, process.pid), SECONDS, target.memory, is_over, receive)
    process.join()
    done = receive()
    receiver.close()
    fault = watched.killed or f"the process ended with {process.exitcode}"
    if watched.killed or process.exitcode:
        findings.failures[done] = fault
        findings.inputs += 1


def read_inputs(
    target: FuzzTarget, seed: int, numbers: range, end: float, folder: str, pipe: Connection
) -> None:
    """Read inputs, and send what came of each: its number, a fault or "", whether refused."""
    torch.set_num_threads(1)
    redirect(os.devnull, os.devnull)
    os.chdir(folder)
    seeds = target.seeds()
    for number in numbers:
        if time.monotonic() > end:
            break
        with one_file(Path(folder) / "input" / target.name) as file:
            file.write_bytes(nth_input(target, seeds, seed, number))
            fault, refused = outcome_of(target, file)
        if refused and number < len(seeds):
            fault = f"a good file is refused: {fault or 'see its message'}"
        pipe.send((number, fault, refused))
    os._exit(0)


@contextmanager
def one_file(file: Path) -> Iterator[Path]:
    """Yield a path in an empty folder, and empty that again: readers may leave files beside it."""
    file.parent.mkdir(exist_ok=True)
    yield file
    shutil.rmtree(file.parent)


def outcome_of(target: FuzzTarget, file: Path) -> tuple[str, bool]:
    """Read a file; return the fault or "", and whether it was refused."""
    try:
        target.read(file)
    except target.mends as error:
        text = printable(shortened(explain(error), LONGEST_MESSAGE))  # as run_main
        if len(text) > MESSAGE:
            return f"a message of {len(text)} characters: {text[:500]}", True
        if found := CONTROL.search(text):
            return f"the control character {found[0]!r} in {text[:500]!r}", True
        return "", True
    except Exception:
        return traceback.format_exc()[-3000:], False
    return "", False


def save_failures(target: FuzzTarget, seed: int, findings: Findings, folder: Path) -> None:
    """Write the inputs that failed, each with what happened beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    seeds = target.seeds()
    for number, fault in findings.failures.items():
        file = folder / f"{seed}-{number}-{target.name}"
        file.write_bytes(nth_input(target, seeds, seed, number))
        file.with_name(file.name + ".txt").write_text(fault, errors="backslashreplace")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[1])
    parser.add_argument("area", choices=[*area_names(), "all"])
    parser.add_argument("--seconds", type=float, default=60.0, help="for each target")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--target", help="only targets whose name has this text")
    parser.add_argument("--out", type=Path, default=Path("fuzz-failures"))
    given = parser.parse_args(argv)
    failed, fuzzed, idle = 0, 0, list[str]()
    for area in area_names() if given.area == "all" else [given.area]:
        for target in load_targets(area):
            if given.target and given.target not in target.name:
                continue
            findings, fuzzed = fuzz(target, given.seed, given.seconds), fuzzed + 1
            print(
                f"{area} {target.name}: {findings.inputs} inputs, {findings.accepted} accepted, "
                f"{findings.refused} refused, {len(findings.failures)} failed",
                flush=True,
            )
            if not findings.inputs:
                idle.append(f"{area} {target.name}")
            if findings.failures:
                save_failures(target, given.seed, findings, given.out / area)
                failed += len(findings.failures)
    if failed:
        sys.exit(f"{failed} inputs failed; they are in {given.out}.")
    if idle or not fuzzed:
        what = ", ".join(idle) or f"no target of {given.area} has {given.target!r} in its name"
        sys.exit(f"nothing was read: {what}. Give more --seconds, or another --target.")


if __name__ == "__main__":
    main()
