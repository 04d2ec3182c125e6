"""Fetches remote images before they are needed: the order of a run is known in advance.

It runs in a thread of a process that starts others, so it must not call pyarrow, whose locks a
forked process could inherit.
"""

import threading
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from types import TracebackType

from dataset.source import Cell, Member, Source
from dataset.stores.blocks import cache
from dataset.stores.remote import RemoteFile
from dataset.tabular.footer import image_ranges
from foundation.errors import UserError

STEPS = 32  # whose images are fetched in advance
SHARE = 0.25  # of the cache that they take at most
LARGEST = 128 * 2**20  # bytes of a row group that are fetched in advance

Range = tuple[RemoteFile, int, int]  # file, its first byte, the byte behind the last one


class Ahead:
    """A thread that fetches the images of coming steps into the cache, for all workers.

    Local data need none. What cannot be fetched is left to the reader, who reports it.

    Args:
        steps: the images of each step, without end.
    """

    def __init__(self, steps: Iterable[Sequence[Source]]):
        self.steps: Iterator[Sequence[Source]] = iter(steps)
        self.first = next(self.steps, ())
        self.steps_read = 0
        self.sizes: dict[int, int] = {}  # bytes of the steps that are fetched and not yet read
        self.is_over = False
        self.changed = threading.Condition()
        self.thread: threading.Thread | None = None

    def __enter__(self) -> "Ahead":
        if any(is_in_store(source) for source in self.first):
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
        with self.changed:
            self.is_over = True
            self.changed.notify()

    def advance(self) -> None:
        """Say that a step has been read."""
        with self.changed:
            self.sizes.pop(self.steps_read, None)
            self.steps_read += 1
            self.changed.notify()

    def run(self) -> None:
        """Fetch the steps in their order, as far ahead as the cache allows."""
        try:
            for number, step in enumerate(chain([self.first], self.steps)):
                ranges = list(dict.fromkeys(part for source in step for part in needed(source)))
                size = sum(end - start for _, start, end in ranges)
                with self.changed:
                    self.changed.wait_for(
                        lambda k=number, s=size: self.is_over or self.is_near(k, s)
                    )
                    if self.is_over:
                        return
                    if number < self.steps_read:
                        continue  # the reader was faster
                    self.sizes[number] = size
                for file, start, end in ranges:
                    file.fetch_ahead(start, end)
        except UserError:
            return

    def is_near(self, number: int, size: int) -> bool:
        """Return whether a step may be fetched now: what waits to be read must not be too much."""
        distance = number - self.steps_read
        fits = sum(self.sizes.values()) + size <= SHARE * cache().limit
        return distance <= 0 or (distance < STEPS and fits)


def is_in_store(source: Source) -> bool:
    """Return whether a source is a part of a remote file."""
    if isinstance(source, Member):
        return isinstance(source.shard, RemoteFile)
    return isinstance(source, Cell) and isinstance(source.file, RemoteFile)


def needed(source: Source) -> list[Range]:
    """Return what a source needs; for an image in a table its whole row group is read."""
    if isinstance(source, Member) and isinstance(source.shard, RemoteFile):
        return [(source.shard, source.offset, source.offset + source.size)]
    if isinstance(source, Cell) and isinstance(source.file, RemoteFile):
        return [(source.file, *part) for part in image_ranges(source, LARGEST)]
    return []
