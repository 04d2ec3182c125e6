"""Arrays on disk that are written block by block and read through a memory map."""

import errno
import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Float16
from torch import Tensor

LARGEST = torch.finfo(torch.float16).max  # 65504


def write_rows(file: Path, names: Sequence[str], blocks: Iterable[Tensor]) -> None:
    """Writes blocks of rows, one below the other, as one float16 .npy array of len(names) rows.

    With plain writes: on a full disk these fail with an error, a memory map kills the process.

    Args:
        names: what each row belongs to, for messages.
    """
    written = 0
    with file.open("wb") as out:
        for block in blocks:
            rows = to_float16(block, names[written : written + len(block)])
            if not written:
                shape = (len(names), *rows.shape[1:])
                need_space(file.parent, 2 * int(np.prod(shape, dtype=np.int64)))
                header = {"descr": "<f2", "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(out, header)
            out.write(rows.numpy().tobytes())
            written += len(rows)
        out.flush()
        os.fsync(out.fileno())
    assert written == len(names), f"{written} rows for {len(names)} names"


def to_float16(block: Float[Tensor, "n ..."], names: Sequence[str]) -> Float16[Tensor, "n ..."]:
    """Refuses what float16 cannot hold: such a row would spoil a training long after."""
    assert len(block) == len(names), "an encoder must give one row for each input"
    block = block.detach().cpu().float()
    largest = block.abs().flatten(1).amax(1)  # NaN where there is one
    good = largest <= LARGEST
    if not good.all():
        k = int(good.int().argmin())
        value = "not finite" if not largest[k].isfinite() else f"as large as {largest[k]:.3g}"
        raise ValueError(
            f"the encoding of {names[k]} is {value}, which float16 cannot hold (up to "
            f"{LARGEST:g}), so nothing was cached. Encode in float32; if it persists, the "
            "network's weights are broken."
        )
    return block.half()


def need_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(errno.ENOSPC, f"{needed / 1e9:.2f} GB needed, {free / 1e9:.2f} GB free")


def map_array(file: Path) -> Tensor:
    """The array as a tensor whose pages are read as they are used.

    Copy-on-write, since torch knows no read-only tensors: writing to it would not reach the file.
    """
    return torch.from_numpy(np.load(file, mmap_mode="c"))
