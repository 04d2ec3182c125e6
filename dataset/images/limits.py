"""Bounds on what decoding one image file may take, and on what all threads take together.

The numbers in the header are checked before anything is allocated. One limit holds for every
library: Pillow, tifffile, imagecodecs and numpy.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Condition

from dataset.source import Source, UnusableImage
from foundation.system import after_fork

MIB = 1 << 20
MOST_BYTES = 512 * MIB  # of decoded numbers: width x height x channels x bytes of a number
MOST_PIXELS = 178_956_970  # width x height: 512 MiB of 8-bit RGB
MOST_SIDE = 1 << 20  # of width and height: the weights of a resize are as many
MOST_FILE_BYTES = 1024 * MIB  # of the file itself
MOST_SEGMENTS = 1 << 18  # strips or tiles of a TIFF: a list in memory for each library
MOST_SCANS = 100  # of a progressive JPEG, which usually has ten; each passes over all pixels
MOST_TEXT_BYTES = 16 * MIB  # of one text chunk when it is unpacked, and of all of them
LARGE_FILE = 64 * MIB  # such files are read one at a time
DECODING_BYTES = 1024 * MIB  # for all threads of a process together


def check_size(path: Source, width: int, height: int, channels: int = 1, depth: int = 1) -> None:
    """Refuse an image that is too large or empty.

    depth: bytes of one number.

    Raises:
        UnusableImage: it has no pixels or too many.
    """
    if width < 1 or height < 1 or channels < 1:
        raise UnusableImage(path, f"has no pixels: {width}x{height}, {channels} channels")
    size = width * height * channels * depth
    if width * height > MOST_PIXELS or size > MOST_BYTES or max(width, height) > MOST_SIDE:
        numbers = f" of {channels} x {8 * depth} bits" if channels * depth > 1 else ""
        raise UnusableImage(
            path,
            f"is too large: {width}x{height} pixels{numbers} ({size / MIB:,.0f} MiB). Images up to "
            f"{MOST_PIXELS:,} pixels, {MOST_BYTES // MIB} MiB and {MOST_SIDE:,} pixels a side are "
            "read; scale it down",
        )


class Budget:
    """Memory that threads share: whoever wants more than is left waits for the others.

    A single demand above the whole is granted when nobody else holds any.
    """

    def __init__(self, total: int):
        self.total = total
        self.reset()
        after_fork(self.reset)  # its threads are gone

    def reset(self) -> None:
        """Forget all demands."""
        self.used = 0
        self.freed = Condition()

    @contextmanager
    def hold(self, size: int) -> Iterator[None]:
        """Wait until this many bytes are free, and hold them. It must not be nested."""
        size = min(size, self.total)
        with self.freed:
            self.freed.wait_for(lambda: self.used + size <= self.total)
            self.used += size
        try:
            yield
        finally:
            with self.freed:
                self.used -= size
                self.freed.notify_all()


BUDGET = Budget(DECODING_BYTES)
