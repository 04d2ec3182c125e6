"""Trainings in processes of their own, which outlive the program that starts them.

They are found again by their run folders: a lock says whether somebody trains in one, and who.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from foundation import system
from foundation.errors import UserError, one_line, shown
from foundation.files import write_json
from foundation.paths import name_problem
from training.run_lock import holder_of
from training.tools.run_folders import find_runs
from training.tools.sequence import (
    FILE,
    STATE,
    Command,
    Commands,
    SequenceState,
    read_commands,
    read_state,
)

LOG = "log.txt"  # in the folder of a sequence: what its trainings print
LONGEST_NAME = 60  # characters
SHOWN_LOG = 64 * 1024  # bytes at its end
ERROR = "error: "  # begins the line in which a script says why it failed
children: list[subprocess.Popen[Any]] = []  # asked for their end now and then, so that none stays


def check_run_name(name: str) -> str:
    """Return the name of a new folder in runs/, or refuse it."""
    reason = name_problem(name)
    if not reason and name.startswith((".", "-")):
        reason = f"begins with {name[0]!r}"
    if not reason and len(name) > LONGEST_NAME:
        reason = f"has {len(name)} characters, and may have {LONGEST_NAME}"
    if reason:
        raise UserError(f"{shown(name)} cannot be the name of a training: it {reason}.")
    return name


def write_commands(folder: Path, commands: Sequence[Command]) -> None:
    """Write the commands of a new sequence; the same once more are no change.

    Raises:
        UserError: the folder holds something else, or it is a link.
    """
    if folder.is_symlink():
        raise UserError(f"{one_line(folder)} is a link to another folder. Choose another name.")
    if (folder / FILE).is_file():
        if read_commands(folder) != tuple(commands):
            raise UserError(
                f"{one_line(folder)} holds a training with other settings. Choose another name to "
                "begin a new one, or go on with that one as it is."
            )
        return
    if folder.exists() and any(folder.iterdir()):
        raise UserError(
            f"{one_line(folder)} is there already, with other files. Choose another name."
        )
    write_json(folder / FILE, asdict(Commands(tuple(commands))))


def start_sequence(folder: Path, at_once: bool = False) -> None:
    """Start the trainings of a sequence, or go on with them.

    at_once: do not wait for the end of other trainings.

    Raises:
        UserError: they are running, or there are none.
    """
    read_commands(folder)
    for child in [child for child in children if child.poll() is not None]:
        children.remove(child)
    if read_state(folder).is_active or any(holder_of(run) for run in find_runs(folder)):
        raise UserError(f"{one_line(folder)} is being trained already.")
    write_json(folder / STATE, asdict(SequenceState("starting", began=time.time())))
    root = Path(__file__).parents[2]
    paths = [str(root), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    words = [sys.executable, "-m", "training.tools.sequence", str(folder)]
    options: dict[str, Any] = {"start_new_session": True}
    if system.ON_WINDOWS:  # with a window of its own, in which Ctrl-C stops it
        options = {"creationflags": getattr(subprocess, "CREATE_NEW_CONSOLE")}  # noqa: B009
    with (folder / LOG).open("ab") as log:
        children.append(
            subprocess.Popen(
                [*words, "--no-wait"] if at_once else words,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                **options,
            )
        )


def stop_training(folder: Path) -> None:
    """Ask a sequence, or a training, to stop: it saves its state first, as after SIGTERM.

    Raises:
        UserError: nobody trains there, it is stopping already, or its process is not of this
            machine.
    """
    is_sequence = (folder / FILE).is_file()
    if is_sequence and read_state(folder).name == "stopping":
        raise UserError(f"{one_line(folder)} is stopping: it saves its state first.")
    holder = holder_of(folder)
    while holder is None and is_sequence and read_state(folder).name == "starting":
        time.sleep(0.2)
        holder = holder_of(folder)
    if holder is None and is_sequence:  # one whose own process was killed, not that of a stage
        found = (holder_of(run) for run in find_runs(folder))
        holder = next((one for one in found if one is not None), None)
    if holder is None:
        raise UserError(f"nobody trains in {one_line(folder)}.")
    if holder.host != socket.gethostname():
        raise UserError(
            f"{one_line(folder)} is being trained on {holder.host} (process {holder.process}). "
            "Stop it there."
        )
    if system.ON_WINDOWS:
        raise UserError(f"press Ctrl-C in the window of the training (process {holder.process}).")
    os.kill(holder.process, signal.SIGTERM)


def read_log(folder: Path) -> str:
    """Return the end of what the trainings of a sequence have printed."""
    try:
        with (folder / LOG).open("rb") as file:
            file.seek(max(file.seek(0, os.SEEK_END) - SHOWN_LOG, 0))
            return file.read().decode("utf-8", "replace")
    except OSError:
        return ""


def reason_of_failure(folder: Path) -> str:
    """Return why the last training of a sequence failed, as it said itself; "" if it did not."""
    lines = read_log(folder).splitlines()
    places = [k for k, line in enumerate(lines) if line.startswith(ERROR)]
    if not places:
        return lines[-1] if lines else ""
    return "\n".join(lines[places[-1] :]).removeprefix(ERROR)
