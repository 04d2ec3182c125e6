"""Which rank is alive, and what it is doing: so that a run with a dead one ends, and says so.

Every rank writes a sign of life into the store through which the ranks have met, once a second,
from a thread of its own, and reads those of the others. Work that waits for a dead rank would wait
forever inside a library, so the thread ends the process.
"""

import hashlib
import json
import os
import signal
import socket
import sys
import threading
import time
import uuid
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist

STOPPED = 130  # exit status after SIGINT or SIGTERM
BEAT = 1.0  # seconds
SILENCE = 20.0  # seconds without a sign of life, after which a rank is dead
SILENCE_AFTER_LOSS = 5.0  # the same where a connection to some rank has just broken
LOST = ("gloo", "nccl", "connection", "socket", "peer")  # words of what a library then says


@dataclass(frozen=True)
class Sign:
    """What a rank tells about itself."""

    phase: str = "starting"
    step: int = 0
    moves: int = 0  # phases since the step began; the ranks go through the same ones
    limited: bool = False  # whether a phase that takes long is a reason to end the run
    ended: str = ""  # the error that ended it
    over: bool = False  # ended in order: finished, or stopped when asked
    machine: str = ""
    processes: str = ""  # which numbering of processes the next one is of
    process: int = 0
    beat: int = 0

    @property
    def place(self) -> tuple[int, int]:
        """How far it is."""
        return self.step, self.moves

    @property
    def where(self) -> str:
        return f"{self.machine}, process {self.process}"

    def gone(self) -> bool:
        """Whether its process no longer exists; not known from another machine or container."""
        if self.processes != numbering_of_processes():
            return False
        try:
            os.kill(self.process, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            pass
        return False

    def __str__(self) -> str:
        return f"step {self.step}: {self.phase}" if self.step else self.phase


class Here:
    """What this process is doing."""

    sign = Sign()
    watch: "Watch | None" = None
    lock = threading.RLock()

    @classmethod
    def tell(cls, **changes: str | int | bool) -> None:
        """Changes the sign, and shows it to the other ranks if there are any."""
        with cls.lock:
            cls.sign = replace(cls.sign, beat=cls.sign.beat + 1, **changes)
            if cls.watch is not None:
                cls.watch.store.set(f"sign {cls.watch.rank}", json.dumps(asdict(cls.sign)))


def phase(name: str, step: int | None = None, limited: bool | None = None) -> None:
    """Says what this process does from now on.

    step: begins this step; the phases after it belong to it, too.
    limited: whether this and the phases after it are short, so that a rank that stays in one for
        `Watch.patience` seconds hangs.
    """
    old = Here.sign
    Here.tell(
        phase=name,
        step=old.step if step is None else step,
        moves=old.moves + 1 if step is None else 0,
        limited=old.limited if limited is None else limited,
    )


def finished() -> None:
    """Says that this rank has nothing more to do with the others: it may go."""
    Here.tell(over=True)


class Watch(threading.Thread):
    """Ends this process when another rank has failed, died, or hangs."""

    patience = 1800.0  # seconds without progress of any rank, in limited phases

    def __init__(self, rank: int, count: int):
        super().__init__(daemon=True, name="watch over the other ranks")
        self.rank, self.count = rank, count
        self.silence, self.stopping = SILENCE, threading.Event()
        self.signs: dict[int, Sign] = {}
        self.heard: dict[int, float] = {}  # when the sign of a rank last changed
        self.moved = time.monotonic()  # when the place of any rank last changed
        self.store = None
        Here.sign = Sign(
            machine=socket.gethostname(), processes=numbering_of_processes(), process=os.getpid()
        )
        if count > 1:
            self.store, Here.watch = connect(), self
            Here.tell()
            self.start()

    def run(self) -> None:
        while not self.stopping.wait(BEAT * (1 + self.count / 100)):
            try:
                Here.tell()
                self.listen()
            except (RuntimeError, OSError):  # the store is gone, and with it who kept it
                self.stopping.wait(BEAT)
                lost = "the place where the ranks meet is gone, and with it its process or machine."
                self.end(self.missing() or lost)
            if any(sign.ended for sign in self.signs.values()):
                self.end("")  # that rank says itself why
            elif message := self.missing() or self.hanging():
                self.end(message)

    def listen(self) -> None:
        """Reads those of the others."""
        others = [k for k in range(self.count) if k != self.rank]
        texts = self.store.multi_get([f"sign {k}" for k in others])
        for k, text in zip(others, texts, strict=True):
            old, new = self.signs.get(k), Sign(**json.loads(text))
            self.signs[k] = new
            if new != old:
                self.heard[k] = time.monotonic()
            if old is None or new.place != old.place:
                self.moved = time.monotonic()

    def missing(self) -> str:
        """The rank that has died, in words; empty if there is none."""
        now = time.monotonic()
        for k, sign in self.signs.items():
            name = f"rank {k} of {self.count} ({sign.where})"
            if sign.over or sign.ended:
                continue
            if sign.gone() or now - self.heard[k] > self.silence:
                return (
                    f"{name} is dead. What it did last: {sign}. The usual causes: the memory was "
                    "full, and the system killed it; somebody else did; its machine or the network "
                    "failed. So all ranks end. The same command again goes on from the last saved "
                    "state."
                )
        return ""

    def hanging(self) -> str:
        """The rank that the others wait for, if all stand still, in words."""
        signs = {**self.signs, self.rank: Here.sign}
        last = min(signs, key=lambda k: signs[k].place)
        waited = time.monotonic() - self.moved
        if waited < self.patience or len(signs) < self.count or not signs[last].limited:
            return ""
        ahead = {str(sign) for sign in signs.values() if sign.place > signs[last].place}
        return (
            f"rank {last} of {self.count} ({signs[last].where}) has been in {signs[last]} for "
            f"{waited:.0f} seconds"
            + (f", and the others wait in {', '.join(sorted(ahead))}" if ahead else ", as all are")
            + ". So all ranks end; --rank-timeout says how long to wait. The same command again "
            "goes on from the last saved state."
        )

    def end(self, message: str) -> None:
        """Ends the process with a message, if there is one, unless it is about to end anyway."""
        if not self.stopping.wait(2 * BEAT):
            if message:
                self.tell(f"error: {message}")
            os._exit(1)

    def tell(self, message: str) -> None:
        """Prints it, unless another rank says the same; then waits until that one has.

        A process that ends makes torchrun end the others, which might yet have to say something.
        """
        if self.store is None:
            print(message, file=sys.stderr, flush=True)
            return
        key = "told " + hashlib.sha256(message.encode()).hexdigest()
        with suppress(RuntimeError, OSError):  # without a store better twice than never
            if self.store.add(key, 1) > 1:
                self.store.wait([f"{key}, really"], timedelta(seconds=5))
                return
        about = f"(rank {self.rank} of {self.count}, in {Here.sign})"
        print(f"{message}\n{about}", file=sys.stderr, flush=True)
        with suppress(RuntimeError, OSError):
            self.store.set(f"{key}, really", "")

    def leave(self, message: str, status: int) -> None:
        """Ends the process with a message, unless another rank is the reason: then with that one.

        Besides, tells the others that this one has not just died.
        """
        if self.store is not None and not Here.sign.over:
            self.await_verdict(SILENCE_AFTER_LOSS if status == STOPPED else 0)
            self.failed(message)
        self.tell(message)
        sys.exit(status)

    def failed(self, message: str) -> None:
        """Tells the other ranks that this one ends."""
        with suppress(RuntimeError, OSError):  # without a store they will miss it
            Here.tell(ended=message.strip().split("\n")[0])

    def await_verdict(self, seconds: float) -> None:
        """What went wrong here may come from the death of another rank: gives the thread, which
        ends the process when it knows of one, the time to notice. torchrun notices, too, and tells
        this one to end; it would do so before it has said why."""
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        self.silence = SILENCE_AFTER_LOSS
        time.sleep(seconds + 4 * BEAT)

    def stop(self) -> None:
        """At the end of the process."""
        self.stopping.set()
        if self.is_alive():
            self.join()
            with suppress(RuntimeError, OSError):
                Here.tell(over=True)
            Here.watch = None


def connect() -> dist.Store:
    """A connection of one's own to where the ranks met; a shared one would be busy with waiting."""
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = dist.TCPStore(address, port, is_master=False, timeout=timedelta(seconds=SILENCE))
    start = [os.environ.get(f"TORCHELASTIC_{name}", "") for name in ("RUN_ID", "RESTART_COUNT")]
    return dist.PrefixStore("/".join(["latentsmith", *start]), store)


def numbering_of_processes() -> str:
    """The same for two processes if the number of either means the same to both."""
    try:
        started = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{started} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return f"{uuid.getnode()}"


def connection_lost(error: BaseException) -> bool:
    """Whether it looks like the death of another rank rather than a mistake of this one."""
    return isinstance(error, RuntimeError) and any(word in str(error).lower() for word in LOST)
