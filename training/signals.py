"""SIGINT and SIGTERM: the first one ends a program cleanly, the second one ends it at once."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from foundation.ranks import rank

# Ctrl-C; what kill, systemd and batch systems send; Ctrl-Break, and closing the window, on Windows
NAMES = ("SIGINT", "SIGTERM", "SIGBREAK")
SIGNALS = tuple(signal.Signals[name] for name in NAMES if hasattr(signal, name))


class StopRequest:
    """A note that a signal asked to stop."""

    def __init__(self):
        self.requested = False

    def reason(self, step: int, any_rank: Callable[[bool], bool]) -> KeyboardInterrupt | None:
        """Return what to raise once the state of this step is saved; None to go on.

        All ranks get the same answer, whichever of them received the signal.

        any_rank: tells whether something is true on at least one rank.
        """
        if not any_rank(self.requested):
            return None
        return KeyboardInterrupt(
            f"stopped after step {step}, with the state saved. Run the same command again to go on."
        )


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Turn the first signal inside the block into a request; it interrupts nothing."""
    stop = StopRequest()

    def request_stop(name: str) -> None:
        stop.requested = True
        if not rank():
            write_to_stderr(
                f"\n{name}: stopping after this step; once more stops at once, without saving.\n"
            )

    with first_signal(request_stop):
        yield stop


@contextmanager
def interruptible() -> Iterator[None]:
    """Raise KeyboardInterrupt at the first signal inside the block, so that files are cleaned up.

    Without this, SIGTERM would end the process where it is.
    """

    def interrupt(name: str) -> None:
        raise KeyboardInterrupt(
            f"stopped by {name}. Files that were complete are kept. To go on, run the same command "
            "again."
        )

    with first_signal(interrupt):
        yield


@contextmanager
def first_signal(handle_first: Callable[[str], None]) -> Iterator[None]:
    """Call a function with the name of the first signal inside the block.

    The second signal is left to the system, which ends the process even while it waits inside a
    library.

    Processes started inside the block inherit the handlers, and a terminal sends its signals to all
    of them. In these processes the first signal does nothing, as their parent tells them when to
    end.
    """
    owner = os.getpid()

    def handle(number: int, frame: FrameType | None) -> None:
        for other in SIGNALS:
            signal.signal(other, signal.SIG_DFL)
        if os.getpid() == owner:
            handle_first(signal.Signals(number).name)

    previous = {number: signal.signal(number, handle) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def write_to_stderr(text: str) -> None:
    """Write past Python's buffers; the signal may have interrupted a write into them."""
    with suppress(OSError):  # the terminal may be gone
        os.write(2, text.encode())
