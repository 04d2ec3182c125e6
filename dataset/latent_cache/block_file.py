"""Arrays on disk that several processes write, each its own blocks of rows, over several attempts.

Beside the array lie journals, one of each process: a line says that a block is on the disk, and its
sha256. So after a kill at any moment it is known which blocks are whole.
"""

import errno
import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Float16
from torch import Tensor

from foundation.errors import UserError

LARGEST = torch.finfo(torch.float16).max  # 65504
PAGE = 4096  # bytes; blocks that begin on pages of their own can be written by several machines
ROWS = 256  # of a block: a multiple of PAGE if a row has a multiple of 16 bytes
MOST_BLOCKS = 4096


class BlockFile:
    """A float16 .npy array of `length` rows, in `count` blocks."""

    def __init__(self, path: Path, length: int):
        self.path, self.length = path, length
        self.rows = max(ROWS, -(-length // MOST_BLOCKS))
        self.count = -(-length // self.rows)

    def block(self, number: int) -> range:
        """The rows of a block."""
        return range(self.length)[number * self.rows : (number + 1) * self.rows]

    def write(self, number: int, block: Float16[np.ndarray, "n ..."], journal: str) -> None:
        """With plain writes: on a full disk these fail with an error, a memory map kills.

        journal: name of this process's journal; of two that know a block the later name counts.
        """
        rows = self.block(number)
        content = block.tobytes()
        shape = (self.length, *block.shape[1:])
        header = npy_header(shape)
        size = len(header) + 2 * int(np.prod(shape, dtype=np.int64))
        if not self.path.exists():
            need_space(self.path.parent, size)
        with os.fdopen(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644), "r+b") as file:
            file.write(header)
            file.truncate(size)
            file.seek(len(header) + rows.start * (len(content) // len(rows)))
            file.write(content)
            sync(file)
        line = {"block": number, "sha256": hashlib.sha256(content).hexdigest()}
        with self.path.with_suffix(f".{journal}.done").open("a", encoding="utf-8") as file:
            file.write(f"{json.dumps(line)}\n")
            sync(file)

    def done(self) -> dict[int, str]:
        """Block -> its sha256, of those in the journals. A line that a kill tore is none."""
        hashes = {}
        for journal in sorted(self.path.parent.glob(f"{self.path.stem}.*.done")):
            for line in journal.read_text(encoding="utf-8").splitlines():
                try:
                    entry = json.loads(line)
                except json.JSONDecodeError:
                    continue
                hashes[entry["block"]] = entry["sha256"]
        return hashes

    def damaged(self, hashes: dict[int, str]) -> Iterator[int]:
        """The blocks, one after the other as they are read, of which the content is another."""
        if not hashes:
            return
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
    """Of a float16 .npy file, as long as a page."""
    text = repr({"descr": "<f2", "fortran_order": False, "shape": shape}).encode()
    start = b"\x93NUMPY\x01\x00" + (PAGE - 10).to_bytes(2, "little")
    return start + text.ljust(PAGE - 11) + b"\n"


def to_float16(block: Float[Tensor, "n ..."], names: Sequence[str]) -> Float16[Tensor, "n ..."]:
    """Refuses what float16 cannot hold: such a row would spoil a training long after."""
    assert len(block) == len(names), "an encoder must give one row for each input"
    block = block.detach().cpu().float()
    largest = block.abs().flatten(1).amax(1)  # NaN where there is one
    good = largest <= LARGEST
    if not good.all():
        k = int(good.int().argmin())
        value = "not finite" if not largest[k].isfinite() else f"as large as {largest[k]:.3g}"
        raise UserError(
            f"the encoding of {names[k]} is {value}, which float16 cannot hold (up to "
            f"{LARGEST:g}), so it was not cached. Encode in float32; if it persists, the "
            "network's weights are broken."
        )
    return block.half()


def need_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(errno.ENOSPC, f"{needed / 1e9:.2f} GB needed, {free / 1e9:.2f} GB free")


def sync(file) -> None:
    file.flush()
    os.fsync(file.fileno())


def map_array(file: Path) -> Tensor:
    """The array as a tensor whose pages are read as they are used, and which must not be written.

    torch warns of that. Copy-on-write would be safe, but the system counts such a map as memory in
    use, so that an array larger than its memory could not be opened.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.from_numpy(np.load(file, mmap_mode="r"))
