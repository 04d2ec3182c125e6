"""Arrays on the disk that several processes write, each its own blocks of rows.

While an array is incomplete, a folder next to it holds a small file for each finished block, with
the sha256 of the block's content. Such a file appears as a whole after the block is on the disk, so
after a kill at any moment its presence means that the block is done.
"""

import errno
import hashlib
import os
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Float16
from torch import Tensor

from foundation.errors import UserError, one_line
from foundation.files import atomic_file, open_file

LARGEST = torch.finfo(torch.float16).max  # 65504
PAGE = 4096  # bytes; several machines can write blocks that begin on pages of their own
ROWS = 256  # rows per block: whole pages if a row has a multiple of 16 bytes
MOST_BLOCKS = 4096  # longer arrays have larger blocks
BLOCKS = "blocks"  # folder of the files that tell which blocks are finished


class BlockFile:
    """A float16 .npy file of `length` rows, in `count` blocks of `rows` rows."""

    def __init__(self, path: Path, length: int):
        self.path, self.length = path, length
        self.rows = max(ROWS, -(-length // MOST_BLOCKS))
        self.count = -(-length // self.rows)

    def block(self, number: int) -> range:
        """Return the rows of a block."""
        return range(self.length)[number * self.rows : (number + 1) * self.rows]

    def hash_file(self, number: int) -> Path:
        """Return the file that holds the sha256 of a finished block."""
        return self.path.parent / BLOCKS / f"{self.path.stem}.{number:04d}"

    def write(self, number: int, block: Float16[np.ndarray, "n ..."]) -> None:
        """Write a block, and note that it is finished.

        Plain writes are used, because on a full disk they fail with an error, whereas writing to a
        memory map would kill the process.
        """
        content = block.tobytes()
        shape = (self.length, *block.shape[1:])
        header = npy_header(shape)
        size = len(header) + 2 * int(np.prod(shape, dtype=np.int64))
        if not self.path.exists():
            require_space(self.path.parent, size)
        bytes_per_row = len(content) // len(block)
        with os.fdopen(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644), "r+b") as file:
            file.write(header)
            file.truncate(size)
            file.seek(len(header) + self.block(number).start * bytes_per_row)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        with atomic_file(self.hash_file(number)) as partial:
            partial.write_text(hashlib.sha256(content).hexdigest(), encoding="ascii")

    def finished(self) -> dict[int, str]:
        """Return the sha256 of each finished block."""
        files = [(number, self.hash_file(number)) for number in range(self.count)]
        return {number: file.read_text("ascii") for number, file in files if file.exists()}

    def find_damaged(self, hashes: Mapping[int, str]) -> Iterator[int]:
        """Read the blocks in `hashes`; yield the number of each whose sha256 is another."""
        try:
            values = np.load(self.path, mmap_mode="r")
        except (OSError, ValueError, EOFError):
            yield from hashes
            return
        for number, expected in hashes.items():
            rows = self.block(number)
            content = values[rows.start : rows.stop].tobytes()
            if hashlib.sha256(content).hexdigest() != expected:
                yield number


def npy_header(shape: tuple[int, ...]) -> bytes:
    """Return the header of a float16 .npy file, padded to one page."""
    text = repr({"descr": "<f2", "fortran_order": False, "shape": shape}).encode()
    start = b"\x93NUMPY\x01\x00" + (PAGE - 10).to_bytes(2, "little")
    return start + text.ljust(PAGE - 11) + b"\n"


def to_float16(block: Float[Tensor, "n ..."], names: Sequence[str]) -> Float16[Tensor, "n ..."]:
    """Convert encodings to float16.

    names: of the inputs, for the message.

    Raises:
        UserError: a number is not finite or too large for float16. It would spoil a training long
            afterwards.
    """
    assert len(block) == len(names), "an encoder must return one row for each input"
    block = block.detach().cpu().float()
    largest = block.abs().flatten(1).amax(1)  # NaN if any number is NaN
    fits = largest <= LARGEST
    if not fits.all():
        k = int(fits.int().argmin())
        value = "not finite" if not largest[k].isfinite() else f"as large as {largest[k]:.3g}"
        raise UserError(
            f"the encoding of {names[k]} is {value}, which float16 cannot hold (up to "
            f"{LARGEST:g}), so it was not cached. Encode in float32; if the error persists, the "
            "network's weights are broken."
        )
    return block.half()


def require_space(folder: Path, size: int) -> None:
    """Raise an OSError if the disk has less than `size` bytes left."""
    free = shutil.disk_usage(folder).free
    if free < size:
        raise OSError(errno.ENOSPC, f"{size / 1e9:.2f} GB needed, {free / 1e9:.2f} GB free")


def load_array(file: Path) -> np.ndarray:
    """Memory-map a .npy file of a cache.

    Raises:
        UserError: it is missing, cut short, or no such file.
    """
    try:
        open_file(file).close()  # a pipe or a device is refused
        return np.load(file, mmap_mode="r")
    # A damaged header is text that numpy evaluates, which can raise nearly anything.
    except (OSError, ValueError, EOFError, SyntaxError, TypeError, MemoryError) as error:
        raise UserError(
            f"{file} is damaged ({one_line(error, 200)}). Delete {file.parent}, so that the latent "
            "cache is built again."
        ) from None


def map_array(file: Path, axes: int) -> Tensor:
    """Memory-map a .npy file as a tensor, which must not be written to.

    axes: how many the array must have.

    Pages are read when they are used. PyTorch warns that the tensor is not writable. A
    copy-on-write map would avoid that, but the system counts such a map as used memory, so an
    array larger than the memory could not be opened.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        array = load_array(file)
        if array.ndim != axes or array.dtype.kind not in "fiu" or array.dtype.byteorder == ">":
            raise UserError(
                f"{file} holds an array of {array.dtype} with {array.ndim} axes, not {axes}. "
                f"Delete {file.parent}, so that the latent cache is built again."
            )
        return torch.from_numpy(array)
