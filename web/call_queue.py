"""The queue of the calls that use a model: they share a device, so one draws while others wait.

Gradio has one, too. Here a call can be stopped while it waits, and its page says how many calls are
before it.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from foundation.errors import UserError

MOST_WAITING = 16  # calls; each of them may hold a thread of the server
LOOK_AGAIN = 1.0  # seconds; a page that was closed is noticed when something is sent to it


class Stopped(Exception):
    """Somebody pressed "Stop"."""


@dataclass(frozen=True)
class Caller:
    """Who draws: a session of the page or of a program, and the tab in it."""

    session: str
    tab: str = ""


class Turn:
    """The place of one call in the queue, and whether it is to end."""

    def __init__(self, queue: "CallQueue", caller: Caller):
        self.queue, self.caller = queue, caller
        self.stop = threading.Event()

    def wait(self) -> Iterator[int]:
        """Wait until no call is before this one; yield from time to time how many are.

        Raises:
            Stopped: it was stopped meanwhile.
        """
        while ahead := self.queue.calls_before(self):
            yield ahead
            self.queue.wait_for_change(self, ahead)
            self.check()
        self.check()

    def check(self) -> None:
        """Raise Stopped if the call is to end."""
        if self.stop.is_set():
            raise Stopped


class CallQueue:
    """Calls in the order in which they came; the first of them draws."""

    def __init__(self):
        self.turns: list[Turn] = []
        self.is_closed = False
        self.changed = threading.Condition()

    @contextmanager
    def enter(self, caller: Caller) -> Iterator[Turn]:
        """Context manager: join the queue; the call must `wait` before it uses a model.

        Raises:
            UserError: too many wait.
        """
        turn = Turn(self, caller)
        with self.changed:
            if len(self.turns) > MOST_WAITING:
                raise UserError(
                    f"{MOST_WAITING} calls wait already, and more are not taken. Try again later."
                )
            self.turns.append(turn)
            if self.is_closed:
                turn.stop.set()
        try:
            yield turn
        finally:
            with self.changed:
                self.turns.remove(turn)
                self.changed.notify_all()

    def stop(self, caller: Caller) -> None:
        """Stop the calls of a tab, or all of a session if the tab is empty: they end soon."""
        with self.changed:
            for turn in self.turns:
                if caller in (turn.caller, Caller(turn.caller.session)):
                    turn.stop.set()
            self.changed.notify_all()

    def close(self) -> None:
        """Stop all calls, also those that come later: the server ends."""
        with self.changed:
            self.is_closed = True
            for turn in self.turns:
                turn.stop.set()
            self.changed.notify_all()

    def calls_before(self, turn: Turn) -> int:
        with self.changed:
            return self.turns.index(turn)

    def wait_for_change(self, turn: Turn, ahead: int) -> None:
        """Wait until another number of calls is before this one, or it is stopped, or some time."""
        with self.changed:
            self.changed.wait_for(
                lambda: turn.stop.is_set() or self.turns.index(turn) != ahead, LOOK_AGAIN
            )
