"""Numbers of many images in blocks on disk: a killed evaluation goes on, and ranks share the work.

The folder of the blocks is named by a hash of all that the numbers depend on. So a block that is
there is right, whoever wrote it.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from dataset.parallel import prefetch
from foundation import collectives
from foundation.files import atomic_file
from training.logging.progress import progress_bar
from training.watchdog import report_progress

BLOCK = 128  # images

Rows = dict[str, Tensor]  # name -> one row for each image of a block


def identity_hash(identity: Mapping[str, Any]) -> str:
    """Return 16 digits that name a folder of blocks; identity: JSON."""
    text = json.dumps(identity, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class Blocks:
    """The blocks of `count` images in a folder.

    Rank r of n computes the missing blocks r, r + n, r + 2n, ...; all ranks see the same folder.
    """

    def __init__(self, folder: Path, count: int, size: int | None = None):
        """size: images of a block; None: `BLOCK`."""
        self.count, self.size = count, size or BLOCK
        self.folder = folder / f"blocks-of-{self.size}"

    def __len__(self) -> int:
        return -(-self.count // self.size)

    def images(self, block: int) -> range:
        """Return the numbers of the images of a block."""
        return range(block * self.size, min((block + 1) * self.size, self.count))

    def file(self, block: int) -> Path:
        """Return the file of a block."""
        return self.folder / f"block-{block:06d}.safetensors"

    def is_there(self, block: int) -> bool:
        """Return whether a block is finished; a damaged one is computed again."""
        try:
            with safe_open(self.file(block), framework="pt"):  # checks the header and the length
                return True
        except (OSError, SafetensorError):
            return False

    def fill(
        self, read: Callable[[range], Tensor], compute: Callable[[range, Tensor], Rows], title: str
    ) -> None:
        """Compute all blocks that are missing, on all ranks together.

        Args:
            read: returns the pixels of some images; a thread calls it ahead of time.
            compute: returns the numbers of each of these images.
            title: of the progress bar.
        """
        missing = [block for block in range(len(self)) if not self.is_there(block)]
        collectives.barrier()  # before a rank writes: all see the same blocks
        own = missing[collectives.rank() :: collectives.world_size()]
        self.folder.mkdir(parents=True, exist_ok=True)
        pixels = prefetch(lambda block: read(self.images(block)), own, depth=1)
        try:
            for block in progress_bar(own, title, len(own)):
                report_progress(f"{title}, block {block}")
                rows = compute(self.images(block), next(pixels))
                with atomic_file(self.file(block)) as partial:
                    save_file({name: value.contiguous() for name, value in rows.items()}, partial)
        except KeyboardInterrupt as stop:
            raise KeyboardInterrupt(self.describe_stop(title)) from stop
        collectives.barrier()

    def describe_stop(self, title: str) -> str:
        """Return what is said when `fill` was stopped: how many images are saved."""
        saved = sum(len(self.images(block)) for block in range(len(self)) if self.is_there(block))
        return (
            f"stopped while {title}: {saved or 'none'} of {self.count} images saved. Run the same "
            "command again to go on."
        )

    def rows(self, name: str) -> Tensor:
        """Return the rows of all images; call `fill` before."""
        return torch.cat(list(self.parts(name)))

    def parts(self, name: str) -> Iterator[Tensor]:
        """Yield the rows of one block after the other."""
        for block in range(len(self)):
            yield self.block_rows(name, block)

    def block_rows(self, name: str, block: int) -> Tensor:
        """Return the rows of one block."""
        with safe_open(self.file(block), framework="pt") as file:
            return file.get_tensor(name)

    def names(self) -> list[str]:
        """Return the names of the rows."""
        with safe_open(self.file(0), framework="pt") as file:
            return sorted(file.keys())
