"""Ends every rank of a training when one of them dies, fails or hangs, and says which and where.

PyTorch alone does less. torchrun ends the other processes of a machine, and names the rank that
died, but not what it was doing. The timeout of a process group is fixed when the group is made,
names no rank, and also holds where rank 0 rightly works alone for hours (building a latent cache).
And a rank that waits for a dead one inside NCCL can be ended only by another thread.

So every rank keeps a status in the store through which torchrun's processes met: its step, its
activity, and a heartbeat. A thread of each rank reads those of the others once a second. The first
rank that has an error to report claims the report; the others then end without a word.
"""

# pyright: reportPrivateImportUsage=false
# torch.distributed documents its stores, but does not list them in __all__.

import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from typing import Any, NoReturn

STOPPED = 130  # exit status after SIGINT or SIGTERM
INTERVAL = 1.0  # seconds between heartbeats
SILENCE = 20.0  # seconds without a heartbeat, after which a rank is dead; torchrun kills after 30
SILENCE_AFTER_LOSS = 5.0  # the same once a connection to some rank has broken
RANK_TIMEOUT = 1800.0  # seconds without progress of any rank, after which one counts as hanging
CONNECTION_WORDS = ("gloo", "nccl", "connection", "socket", "peer")  # in errors of lost connections
REPORT = "report"  # key of the store: claimed by the first rank that reports an error


@dataclass(frozen=True)
class Status:
    """The activity of a rank."""

    activity: str = "starting"
    step: int = 0
    reports: int = 0  # since the step began; all ranks report the same activities in a step
    timeout: float = float("inf")  # seconds in one activity, after which the rank is hanging
    finished: bool = False  # it needs the other ranks no more
    host: str = ""
    process: int = 0

    @property
    def progress(self) -> tuple[int, int]:
        """How far the rank is; can be compared between ranks."""
        return self.step, self.reports

    def __str__(self) -> str:
        return f"step {self.step}: {self.activity}" if self.step else self.activity


def report_progress(
    activity: str, *, step: int | None = None, timeout: float | None = None
) -> None:
    """Say what this rank does from now on, so that an error message can name it.

    Args:
        activity: in words, such as "reading images".
        step: begins this optimizer step; None: it belongs to the step reported last.
        timeout: seconds that this and later activities may take at most; None: unchanged.
    """
    watchdog = _current.get()
    if watchdog is not None:
        watchdog.report_progress(activity, step, timeout)


def report_finished() -> None:
    """Say that this rank needs the others no more, and may end before them."""
    watchdog = _current.get()
    if watchdog is not None:
        watchdog.stop()


class Watchdog:
    """A thread that publishes the status of this rank, and ends it if another one is in trouble.

    With one rank there is no thread.
    """

    def __init__(self, rank: int, world_size: int):
        self.rank, self.world_size = rank, world_size
        self.silence = SILENCE
        self.status = Status(host=socket.gethostname(), process=os.getpid())
        self.heartbeats = 0  # sent by this rank
        self.others: dict[int, Status] = {}
        self.heartbeat_of: dict[int, int] = {}  # the last one read, by rank
        self.last_heartbeat: dict[int, float] = {}  # when it was read, on this rank's clock
        self.last_progress = time.monotonic()  # of any rank
        self.lock = threading.RLock()
        self.stopping = threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True, name="rank watchdog")
        self.store: Any = None  # what the ranks meet through; one rank needs none
        if world_size > 1:
            self.store = connect_to_store()
            self._publish()
            self.thread.start()

    def report_progress(self, activity: str, step: int | None, timeout: float | None) -> None:
        """See the function of the same name."""
        status = replace(self.status, activity=activity, reports=self.status.reports + 1)
        if step is not None:
            status = replace(status, step=step, reports=0)
        if timeout is not None:
            status = replace(status, timeout=timeout)
        self._publish(status)

    def stop(self) -> None:
        """Stop watching, and tell the other ranks that this one may end."""
        self.stopping.set()
        if self.thread.is_alive():
            self.thread.join()
            with suppress(RuntimeError, OSError):  # the store ends with rank 0's machine
                self._publish(replace(self.status, finished=True))

    def exit(self, message: str, status: int) -> NoReturn:
        """Print a message and end this process; print nothing if another rank is the cause."""
        if self.world_size > 1 and not self.status.finished:
            self.wait_for_cause(SILENCE_AFTER_LOSS if status == STOPPED else 0)
        self._report(message)
        sys.exit(status)

    def fail(self, error: Exception) -> None:
        """Claim the report for an error that will be printed with its traceback.

        Ends the process at once if another rank is the cause.
        """
        if self.world_size == 1:
            return
        self.wait_for_cause(SILENCE_AFTER_LOSS if is_connection_error(error) else 0)
        if not self._claim_report():
            self._wait_for_report()
            sys.exit(1)
        where = f"rank {self.rank} of {self.world_size}, in {self.status}"
        record_error(f"{type(error).__name__}: {error} ({where})")
        print(f"{where}, fails:", file=sys.stderr)

    def wait_for_cause(self, seconds: float) -> None:
        """Give the thread time to notice that another rank caused the error of this one.

        If so, the thread ends the process. SIGTERM is ignored from here on: torchrun, which
        notices a dead rank, too, would end this one before it has said why.
        """
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        self.silence = SILENCE_AFTER_LOSS
        time.sleep(seconds + 4 * INTERVAL)

    # The thread -----------------------------------------------------------------------------------

    def _watch(self) -> None:
        """Send a heartbeat and read the others' until `stop`, or until something is wrong."""
        while not self.stopping.wait(INTERVAL * (1 + self.world_size / 100)):
            try:
                self._publish()
                self._read_others()
                reported = self.store.check([REPORT])
            except (RuntimeError, OSError):
                lost = "the store of the ranks is gone, and with it its process or machine."
                self._end_process(self._describe_dead_rank() or lost)
                continue
            if reported:
                self._end_process("")
            elif message := self._describe_dead_rank() or self._describe_hanging_rank():
                self._end_process(message)

    def _publish(self, status: Status | None = None) -> None:
        """Write a new status of this rank into the store, or the old one with a new heartbeat."""
        with self.lock:
            self.status = self.status if status is None else status
            self.heartbeats += 1
            if self.world_size > 1:
                text = json.dumps([self.heartbeats, asdict(self.status)])
                self.store.set(f"status {self.rank}", text)

    def _read_others(self) -> None:
        """Read the status of every other rank, and note what changed."""
        ranks = [k for k in range(self.world_size) if k != self.rank]
        texts = self.store.multi_get([f"status {k}" for k in ranks])
        now = time.monotonic()
        for k, text in zip(ranks, texts, strict=True):
            heartbeat, fields = json.loads(text)
            old, new = self.others.get(k), Status(**fields)
            if heartbeat != self.heartbeat_of.get(k):
                self.last_heartbeat[k] = now
            if old is None or new.progress != old.progress:
                self.last_progress = now
            self.heartbeat_of[k], self.others[k] = heartbeat, new

    def _describe_dead_rank(self) -> str:
        """Return a message about a rank that sends no heartbeat any more, or ""."""
        now = time.monotonic()
        for k, status in self.others.items():
            if not status.finished and now - self.last_heartbeat[k] > self.silence:
                return (
                    f"rank {k} of {self.world_size} ({status.host}, process {status.process}) is "
                    f"dead. What it did last: {status}. The usual causes: the memory was full, and "
                    "the system killed it; somebody else did; its machine or the network failed. "
                    "So all ranks end. The same command again goes on from the last saved state."
                )
        return ""

    def _describe_hanging_rank(self) -> str:
        """Return a message about the rank that is furthest behind if none makes progress, or ""."""
        statuses = {**self.others, self.rank: self.status}
        last = min(statuses, key=lambda k: statuses[k].progress)
        status = statuses[last]
        waited = time.monotonic() - self.last_progress
        if waited < status.timeout or len(statuses) < self.world_size:
            return ""
        ahead = {str(other) for other in statuses.values() if other.progress > status.progress}
        others = f"the others wait in {', '.join(sorted(ahead))}" if ahead else "so are the others"
        return (
            f"rank {last} of {self.world_size} ({status.host}, process {status.process}) has been "
            f"in {status} for {waited:.0f} seconds, and {others}. So all ranks end; --rank-timeout "
            "says how long to wait. The same command again goes on from the last saved state."
        )

    def _end_process(self, message: str) -> None:
        """End the process, with a message unless it is empty; not if it is about to end anyway."""
        if not self.stopping.wait(2 * INTERVAL):
            if message:
                self._report(f"error: {message}")
            os._exit(1)

    # The report -----------------------------------------------------------------------------------

    def _report(self, message: str) -> None:
        """Print a message, unless another rank has claimed the report."""
        if self.world_size == 1:
            print(message, file=sys.stderr, flush=True)
            return
        if not self._claim_report():
            self._wait_for_report()
            return
        where = f"(rank {self.rank} of {self.world_size}, in {self.status})"
        print(f"{message}\n{where}", file=sys.stderr, flush=True)
        record_error(f"{message.strip()} {where}")
        with suppress(RuntimeError, OSError):
            self.store.set(f"{REPORT} printed", "")

    def _claim_report(self) -> bool:
        """Return whether this rank is the first one with something to report."""
        try:
            return self.store.add(REPORT, 1) == 1
        except (RuntimeError, OSError):  # without the store, better two reports than none
            return True

    def _wait_for_report(self) -> None:
        """Wait until the report of another rank is printed.

        A process that ends makes torchrun end the others, which might not have printed it yet.
        """
        with suppress(RuntimeError, OSError):
            self.store.wait([f"{REPORT} printed"], timedelta(seconds=5))


_current: ContextVar[Watchdog | None] = ContextVar("watchdog of this rank", default=None)


@contextmanager
def reporting_to(watchdog: Watchdog) -> Iterator[None]:
    """Send what `report_progress` and `report_finished` say to this watchdog."""
    token = _current.set(watchdog)
    try:
        yield
    finally:
        _current.reset(token)


def connect_to_store() -> Any:
    """Connect to the store through which the ranks met.

    A connection of its own: the one that PyTorch opened is blocked while a rank waits in it.
    """
    import torch.distributed as dist  # slow to import, and one process alone needs no store

    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = dist.TCPStore(address, port, is_master=False, timeout=timedelta(seconds=SILENCE))
    start = [os.environ.get(f"TORCHELASTIC_{name}", "") for name in ("RUN_ID", "RESTART_COUNT")]
    return dist.PrefixStore("/".join(["latentsmith", *start]), store)


def record_error(message: str) -> None:
    """Write a message where torchrun reads it for its summary, if torchrun started this process.

    The format is that of torch.distributed.elastic.multiprocessing.errors.ErrorHandler, which would
    write the traceback instead of the message.
    """
    file = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if file:
        extra = {"py_callstack": message, "timestamp": str(int(time.time()))}
        with suppress(OSError), open(file, "w", encoding="utf-8") as stream:
            json.dump({"message": {"message": message, "extraInfo": extra}}, stream)


def is_connection_error(error: BaseException) -> bool:
    """Return whether an error looks like the death of another rank."""
    words = str(error).lower()
    return isinstance(error, RuntimeError) and any(word in words for word in CONNECTION_WORDS)
