"""SIGINT and SIGTERM: the first ends a program in order, the second at once."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from foundation import collectives

SIGNALS = (signal.SIGINT, signal.SIGTERM)  # Ctrl-C; what kill, systemd and batch systems send


class StopRequest:
    requested = False

    def reason(self, step: int) -> KeyboardInterrupt | None:
        """What to raise when the state of this step is saved; None to go on. One for all ranks,
        whichever of them got the signal."""
        if not collectives.any_rank(self.requested):
            return None
        return KeyboardInterrupt(
            f"stopped after step {step}, with the state saved. Run the same command again to go on."
        )


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Within it, the first signal interrupts nothing, and is only noted."""
    stop = StopRequest()

    def note(name: str) -> None:
        stop.requested = True
        if not collectives.rank():
            tell(f"\n{name}: stopping after this step; once more stops at once, without saving.\n")

    with first_signal(note):
        yield stop


@contextmanager
def interruptible() -> Iterator[None]:
    """Within it, the first signal raises KeyboardInterrupt, so that what is half done is undone."""

    def stop(name: str) -> None:
        raise KeyboardInterrupt(
            f"stopped by {name}; nothing half-written is left. The same command again goes on from "
            "what was complete."
        )

    with first_signal(stop):
        yield


@contextmanager
def first_signal(answer: Callable[[str], None]) -> Iterator[None]:
    """Calls `answer` at the first signal. The second is left to the system, which ends the process
    even while it waits inside a library.

    Processes started meanwhile inherit the handlers, and a terminal sends its signals to all of
    them: in these the first does nothing, since their parent tells them when to end.
    """
    owner = os.getpid()

    def handle(number: int, frame: FrameType | None) -> None:
        for other in SIGNALS:
            signal.signal(other, signal.SIG_DFL)
        if os.getpid() == owner:
            answer(signal.Signals(number).name)

    previous = {number: signal.signal(number, handle) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def tell(text: str) -> None:
    """Writes past Python's buffers, which the handler may have interrupted in mid-write."""
    with suppress(OSError):  # the terminal may have gone
        os.write(2, text.encode())
