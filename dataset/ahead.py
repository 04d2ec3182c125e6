"""Fetches remote images before they are needed: the order of a run is known in advance."""

import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from types import TracebackType

from dataset.source import Member, Source
from dataset.stores.blocks import BLOCK, cache
from dataset.stores.remote import RemoteFile
from foundation.errors import UserError

STEPS = 32  # whose images are fetched in advance
SHARE = 0.25  # of the cache that they take at most


class Ahead:
    """A thread that fetches the blocks of coming steps into the cache, for all workers.

    Local data need none. What cannot be fetched is left to the reader, who reports it.

    Args:
        steps: the images of each step, without end.
    """

    def __init__(self, steps: Iterable[Sequence[Source]]):
        self.steps: Iterator[Sequence[Source]] = iter(steps)
        self.first = next(self.steps, ())
        self.ready = threading.Semaphore(STEPS)
        self.is_over = False
        self.thread: threading.Thread | None = None

    def __enter__(self) -> "Ahead":
        if any(remote_range(source) for source in self.first):
            self.thread = threading.Thread(target=self.run, name="latentsmith-ahead", daemon=True)
            self.thread.start()
        else:
            self.steps = iter(())  # the order behind it takes memory
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.is_over = True
        self.ready.release()

    def advance(self) -> None:
        """Say that a step has been read."""
        self.ready.release()

    def run(self) -> None:
        """Fetch the steps in their order, as far ahead as the cache allows."""
        held: deque[list[Future[None]]] = deque()
        taken = 0
        step = self.first
        try:
            while True:
                self.ready.acquire()
                if self.is_over:
                    return
                futures = [f for source in step for f in prefetch(source)]
                held.append(futures)
                taken += BLOCK * len(futures)
                while held and (taken > SHARE * cache().limit or len(held) > STEPS):
                    oldest = held.popleft()
                    taken -= BLOCK * len(oldest)
                    for future in oldest:
                        future.exception()
                step = next(self.steps)
        except (UserError, StopIteration):
            return


def remote_range(source: Source) -> tuple[RemoteFile, int, int] | None:
    """Return the range of a remote file that a source needs; None if it is on this machine."""
    # Of a table in a store, row groups are read from front to back, which fetches ahead by itself.
    if isinstance(source, Member) and isinstance(source.shard, RemoteFile):
        return source.shard, source.offset, source.offset + source.size
    return None


def prefetch(source: Source) -> list[Future[None]]:
    """Begin to fetch what a source needs."""
    found = remote_range(source)
    if found is None or found[2] <= found[1]:
        return []
    file, start, end = found
    return cache().prefetch(file.url, file.info(), start // BLOCK, (end - 1) // BLOCK)
