"""Images inside of parquet and Arrow files, read at random without the whole file in memory."""

import math
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock

from dataset.source import Cell
from dataset.stores.remote import RemoteFile
from dataset.tabular.arrow_files import IMAGES_AT_ONCE, ColumnarFile, ImageColumn, open_columnar
from dataset.tabular.footer import remote_footer
from foundation.system import after_fork

CACHE_BYTES = 128 * 2**20  # of row groups, in each process
Key = tuple[Path | RemoteFile, int, str]  # file, group, column
MOST_GROUPS = 4096
KEPT_BATCHES = 8  # of a row group that is too large for the cache: threads ask out of order


@dataclass
class LargeGroup:
    """A row group that is read from its beginning, with only a few of its rows in memory."""

    read: Callable[[], Iterator[list[bytes | None]]]
    batches: Iterator[list[bytes | None]] = field(default_factory=lambda: iter(()))
    kept: deque[tuple[int, list[bytes | None]]] = field(
        default_factory=lambda: deque(maxlen=KEPT_BATCHES)
    )
    end: int = 0  # first row that has not been read

    def value(self, row: int) -> bytes | None:
        """Return the value of a row, counted from the beginning of the group."""
        if not self.kept or row < self.kept[0][0]:
            self.kept.clear()
            self.batches, self.end = self.read(), 0
        while row >= self.end:
            batch = next(self.batches, None)
            if batch is None:
                raise OSError(f"the row group ends after {self.end} rows")
            self.kept.append((self.end, batch))
            self.end += len(batch)
        start, values = next(entry for entry in reversed(self.kept) if entry[0] <= row)
        return values[row - start]


@dataclass
class Entry:
    """A row group in the cache, or one that a thread is about to read."""

    lock: Lock = field(default_factory=Lock)
    column: ImageColumn | LargeGroup | None = None
    size: int = 0  # bytes


class GroupCache:
    """The row groups that were used last, at most `capacity` bytes of them."""

    def __init__(self, capacity: int = CACHE_BYTES):
        self.capacity, self.size = capacity, 0
        self.lock = Lock()
        self.entries: OrderedDict[Key, Entry] = OrderedDict()

    def value(self, cell: Cell) -> bytes | None:
        """Return the bytes of a cell; None if it is null.

        Raises:
            OSError: the file cannot be read, or has no such cell any more.
        """
        file = open_columnar(cell.file)
        row = cell.row - file.first_row(cell.group)
        key = (cell.file, cell.group, cell.column)
        with self.lock:
            entry = self.entries.setdefault(key, Entry())
            self.entries.move_to_end(key)
        with entry.lock:
            column = entry.column
            if column is None:
                column = self.load(entry, file, cell)
            if isinstance(column, LargeGroup):
                return column.value(row)
        return column.value(row)

    def load(self, entry: Entry, file: ColumnarFile, cell: Cell) -> ImageColumn | LargeGroup:
        """Read a row group, and drop those that have not been used for the longest time."""
        group, name = cell.group, cell.column
        size = file.group_bytes(group, name)
        column = None
        if size <= self.capacity:
            most = math.inf if file.is_mapped else self.capacity
            column = file.read_images(group, name, most) or file.read_shared(group, name, most)
        if column is None:
            column = LargeGroup(lambda: file.stream_images(group, name))
            share = KEPT_BATCHES * IMAGES_AT_ONCE / max(file.group_length(group), 1)
            size = int(size * min(share, 1))
        else:
            size = 0 if file.is_mapped else column.size
        entry.column, entry.size = column, size
        with self.lock:
            self.size += size
            for key, other in list(self.entries.items()):
                if self.size <= self.capacity and len(self.entries) <= MOST_GROUPS:
                    break
                if other is not entry and other.column is not None:
                    self.size -= other.size
                    del self.entries[key]
        return column


GROUPS = GroupCache()


def forget() -> None:
    """Empty the cache: a forked process must not share the locks and the files of its parent."""
    GROUPS.__init__(GROUPS.capacity)
    open_columnar.cache_clear()
    remote_footer.cache_clear()


after_fork(forget)
