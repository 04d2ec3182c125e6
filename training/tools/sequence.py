"""python -m training.tools.sequence runs/flowers

Runs the trainings that runs/flowers/sequence.json lists, one after the other. First it waits until
no other training runs in runs/; with --no-wait it does not wait. If it is stopped or killed, the
same command goes on.
"""

# Without PyTorch: this process lives as long as the trainings, and leaves the memory to them.
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Annotated, Literal

import tyro

from foundation.errors import UserError, listed, shown
from foundation.files import read_json, write_json
from foundation.json_reading import from_json
from training.cli import parse
from training.run_lock import RunLock, holder_of
from training.tools.run_folders import find_running, folders_in

FILE, STATE = "sequence.json", "sequence-state.json"
SCRIPTS = ("train_clip.py", "train_vae.py", "train_ldm.py")  # that a sequence may run
STOPPED = 130  # exit status of a training that a signal stopped, as in training/watchdog.py
WAIT = 1.0  # seconds between looks at other trainings
START = 60.0  # seconds that a process has, from its start on, to take the lock

StateName = Literal[
    "new", "starting", "waiting", "running", "stopping", "stopped", "failed", "finished"
]
ACTIVE = ("starting", "waiting", "running", "stopping")
Command = tuple[str, ...]  # a script and its arguments


@dataclass(frozen=True)
class Commands:
    """The content of sequence.json."""

    commands: tuple[Command, ...]


@dataclass(frozen=True)
class SequenceState:
    """How far a sequence is; the content of sequence-state.json.

    Args:
        stage: number of the command that runs, or that ran last.
        began: when it was started, in seconds since 1970. Who began first is first in the queue.
        waits_for: name of the training that it waits for.
    """

    name: StateName = "new"
    stage: int = 0
    began: float = 0.0
    waits_for: str = ""

    @property
    def is_active(self) -> bool:
        return self.name in ACTIVE


def read_commands(folder: Path) -> tuple[Command, ...]:
    """Return the commands of a sequence.

    Raises:
        MissingFileError: the folder holds none.
        UserError: its file is damaged, or names what is no training.
    """
    file = folder / FILE
    commands = from_json(Commands, read_json(file), file).commands
    for command in commands:
        if not command or command[0] not in SCRIPTS:
            raise UserError(
                f"{file} has the command {shown(command)}; each begins with one of: "
                f"{listed(SCRIPTS)}."
            )
    return commands


def read_state(folder: Path) -> SequenceState:
    """Return how far a sequence is. One whose process is gone without a word is stopped.

    Do not call it in the process that runs this sequence; see `holder_of`.
    """
    file = folder / STATE
    try:
        state = from_json(SequenceState, read_json(file, {}), file)
    except UserError:
        return SequenceState("stopped")
    if not state.is_active or holder_of(folder) is not None:
        return state
    if state.name == "starting" and time.time() - state.began < START:
        return state
    return replace(state, name="stopped", waits_for="")


def find_sequences(root: Path) -> list[Path]:
    """List the folders in a folder such as runs/ that hold a sequence, in the order of names."""
    return [folder for folder in folders_in(root, root) if (folder / FILE).is_file()]


def busy_before(folder: Path, began: float) -> str:
    """Return the name of a training that a sequence of this time has to wait for; "" if none."""
    root = folder.parent
    for other in find_sequences(root):
        if other.name != folder.name:
            state = read_state(other)
            if state.is_active and (state.began, other.name) < (began, folder.name):
                return other.name
    own = folder.resolve()
    others = [run for run in find_running(root) if own not in run.resolve().parents]
    return others[0].relative_to(root).as_posix() if others else ""


# The process --------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Config:
    # folder with a sequence.json
    folder: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="FOLDER")]
    wait: bool = True  # wait until no other training runs


def main(argv: Sequence[str] | None = None) -> None:
    signal.signal(signal.SIGTERM, interrupt)
    try:
        config = parse(Config, argv, __doc__)
        status = run_sequence(config.folder, at_once=not config.wait)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        status = 2
    except KeyboardInterrupt:
        status = STOPPED
    sys.exit(status)


def interrupt(number: int, frame: FrameType | None) -> None:
    """Stop at the first signal. The second one is left to the system, which ends the process."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    raise KeyboardInterrupt


def run_sequence(folder: Path, at_once: bool) -> int:
    """Run the commands of a sequence that have not been run to their end; return an exit status.

    Raises:
        UserError: there is no sequence, or it is running already.
        KeyboardInterrupt: it was stopped, with the state of the training saved.
    """
    commands = read_commands(folder)
    before = read_state(folder)  # before this process has the lock; see there
    state = SequenceState(began=before.began if before.name == "starting" else time.time())
    lock = RunLock(folder)

    def note(name: StateName, stage: int = 0, waits_for: str = "") -> None:
        nonlocal state
        new = replace(state, name=name, stage=stage, waits_for=waits_for)
        if new != state:
            write_json(folder / STATE, asdict(new))
        state = new

    try:
        note("waiting")
        while not at_once and (other := busy_before(folder, state.began)):
            note("waiting", waits_for=other)
            time.sleep(WAIT)
        for stage, command in enumerate(commands):
            note("running", stage)
            if status := run_stage(command, lambda stage=stage: note("stopping", stage)):
                note("stopped" if status == STOPPED else "failed", stage)
                return status
        note("finished", len(commands) - 1)
        return 0
    except KeyboardInterrupt:
        note("stopped", state.stage)
        raise
    finally:
        lock.release()


def run_stage(command: Command, when_stopping: Callable[[], None]) -> int:
    """Run a script to its end and return its exit status; pass a signal to stop on to it.

    A negative status of a process that a signal killed becomes that of a shell.
    """
    script, *words = command
    child = subprocess.Popen([sys.executable, str(path_of(script)), *words])
    try:
        status = child.wait()
    except KeyboardInterrupt:
        when_stopping()
        child.terminate()
        child.wait()
        raise
    return 128 - status if status < 0 else status


def path_of(script: str) -> Path:
    """Return where a script lies: in the checkout, or in the installed package `latentsmith`."""
    root = Path(__file__).parents[2]
    return root / script if (root / script).is_file() else root / "latentsmith" / script


if __name__ == "__main__":
    main()
