"""A lock on a run folder, so that two trainings never write into it at the same time.

The system holds the lock and gives it back when the process ends, however it ends, so nothing
stays locked after a kill. It is of the kind (POSIX record locks) that network file systems know,
too, and that child processes do not inherit. Of several ranks, rank 0 holds it.
"""

import json
import os
import socket
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO

from foundation import system
from foundation.errors import UserError
from foundation.json_reading import from_json, load_object

LOCK = "run.lock"
LONGEST = 4096  # bytes of the file
LOCKED_BYTE = 2**30  # Windows refuses to read a locked byte, so it lies far behind the content


@dataclass(frozen=True)
class Holder:
    """Who has the lock; the content of the file."""

    host: str = "an unknown host"
    process: int = 0
    since: str = "an unknown time"


def holder_of(run: Path) -> Holder | None:
    """Return who trains in a run folder right now; None if nobody does.

    Do not call it in a process that holds this lock: closing the file would give it back.
    """
    path = run / LOCK
    try:
        stream = path.open("r+b")
    except OSError:
        return None
    with stream:
        holder = _holder(stream, path)
        # The lock is only tried where its process lives: a training that begins right now must not
        # find it taken by this look.
        if holder == Holder() or not may_live(holder) or _lock(stream):
            return None
    return holder


def may_live(holder: Holder) -> bool:
    """Return whether a process exists; on another machine, and on Windows, that is not known."""
    if holder.host != socket.gethostname() or system.ON_WINDOWS:
        return True
    try:
        os.kill(holder.process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # of another user
        return True
    return True


class RunLock:
    """Holds the lock of a run folder until `release`, or until the process ends."""

    def __init__(self, run: Path):
        """Take the lock.

        Raises:
            UserError: another process has it; the message names it.
        """
        self.file: BinaryIO | None = None  # first: __del__ is also called after an error
        path = run / LOCK
        stream = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b")
        try:
            if not _lock(stream):
                holder = _holder(stream, path)
                raise UserError(
                    f"{run} is in use: process {holder.process} on {holder.host} has been training "
                    f"in it since {holder.since}. Wait for its end or stop it, or give another "
                    "--out."
                )
            _write_holder(stream)
        except BaseException:
            stream.close()
            raise
        self.file = stream

    def __del__(self):
        self.release()

    def release(self) -> None:
        """Give the lock back; a second call does nothing."""
        if self.file is not None:
            with suppress(OSError):  # the disk may be gone
                self.file.close()
            self.file = None


def _lock(stream: BinaryIO) -> bool:
    """Lock a file; return False if another process has locked it.

    A file system that has no locks is used without one.
    """
    try:
        if system.ON_WINDOWS:
            msvcrt: Any = import_module("msvcrt")
            os.lseek(stream.fileno(), LOCKED_BYTE, os.SEEK_SET)
            msvcrt.locking(stream.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            fcntl: Any = import_module("fcntl")
            fcntl.lockf(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # EAGAIN, or EACCES as POSIX allows
        return False
    except OSError as error:
        print(
            f"note: {stream.name} cannot be locked ({error.strerror}), so nothing keeps a second "
            "training out of this folder."
        )
    return True


def _write_holder(stream: BinaryIO) -> None:
    now = datetime.now(UTC).isoformat(timespec="seconds")
    holder = {"host": socket.gethostname(), "process": os.getpid(), "since": now}
    stream.seek(0)
    stream.truncate()
    stream.write(json.dumps(holder).encode())
    stream.flush()


def _holder(stream: BinaryIO, path: Path) -> Holder:
    """Read who has the lock; it may be writing this right now."""
    stream.seek(0)
    try:
        return from_json(Holder, load_object(stream.read(LONGEST), path), path)
    except UserError:
        return Holder()
