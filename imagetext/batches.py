"""Batches of pixels and captions; which ones, follows from the seed and the step alone."""

import hashlib
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from jaxtyping import Float32, Int, UInt8
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from imagetext.folder import Pair, listed
from imagetext.images import ImageTransform, UnusableImage

Images = UInt8[Tensor, "b c h w"] | Float32[Tensor, "b c h w"]  # as ImageTransform has them
Progress = Callable[[Iterable, str, int], Iterable]  # passes items through; title; how many
IN_MEMORY = 2**30  # bytes of decoded pixels that are kept rather than decoded again every epoch


def silent(items: Iterable, title: str, total: int) -> Iterable:
    """The progress bar that shows nothing."""
    return items


class Order:
    """Which images form the batch of a step: epoch after epoch, each in a new random order.

    Batches run on across the end of an epoch, so every image is seen equally often and none is
    dropped. To resume, the step is all one needs to know.
    """

    def __init__(self, count: int, batch_size: int, seed: int):
        check_batch_size(batch_size, count)
        self.count, self.batch_size, self.seed = count, batch_size, seed
        self.epochs: dict[int, Tensor] = {}  # the last two used

    def indices(self, step: int) -> Int[Tensor, " b"]:
        first = step * self.batch_size
        places = torch.arange(first, first + self.batch_size)
        epoch = first // self.count
        both = torch.cat([self.permutation(epoch), self.permutation(epoch + 1)])
        return both[places - epoch * self.count]

    def permutation(self, epoch: int) -> Int[Tensor, " n"]:
        if epoch not in self.epochs:
            while len(self.epochs) > 1:
                del self.epochs[min(self.epochs)]
            generator = seeded(self.seed, "epoch", epoch)
            self.epochs[epoch] = torch.randperm(self.count, generator=generator)
        return self.epochs[epoch]


def check_batch_size(batch_size: int, count: int) -> None:
    """Refuses what would be no batch, or one with images twice in it."""
    if batch_size < 1:
        raise ValueError(f"batch size is {batch_size}; it must be at least 1.")
    if count < batch_size:
        raise ValueError(
            f"there are {count} images to train on, fewer than one batch of {batch_size}. "
            f"Use --batch-size {max(count, 1)} or smaller, or add images."
        )


class ImageBatches(Dataset):
    """Pairs as batches: `batches[step]`, or `batches.stream(first_step)` to read ahead.

    If all pixels fit into `in_memory` bytes they are decoded once, here, and a batch is one
    gather. Otherwise `workers` processes decode batches ahead of time.

    Args:
        batch_size: images of one step, of all ranks together.
        flip: mirror half of the images. Off, because captions say "left" and letters do not
            read backwards.
        rank, ranks: this process gets every `ranks`-th image of each batch.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        transform: ImageTransform,
        batch_size: int,
        seed: int,
        workers: int = 0,
        *,
        flip: bool = False,
        rank: int = 0,
        ranks: int = 1,
        in_memory: int = IN_MEMORY,
        progress: Progress = silent,
    ):
        if batch_size % ranks:
            raise ValueError(
                f"a batch of {batch_size} does not divide among {ranks} processes; "
                f"use --batch-size {max(batch_size // ranks, 1) * ranks}."
            )
        self.order = Order(len(pairs), batch_size, seed)
        self.pairs, self.transform, self.seed = list(pairs), transform, seed
        self.workers, self.flip, self.rank, self.ranks = workers, flip, rank, ranks
        bytes_each = transform.format.in_memory.itemsize
        needed = len(pairs) * transform.channels * transform.size**2 * bytes_each
        self.pixels = None
        if needed <= in_memory and transform.crop != "random":
            self.pixels = read_pixels([pair.path for pair in pairs], transform, progress)

    def __getitem__(self, step: int) -> tuple[Images, list[str]]:
        share = slice(self.rank, None, self.ranks)
        indices = self.order.indices(step)[share]
        if self.pixels is None:
            images = self.read(indices, step)
        else:
            images = self.pixels.index_select(0, indices)  # ten times faster than pixels[indices]
        if self.flip:
            mirrored = (self.draw("flip", step)[share] < 0.5).nonzero().flatten()
            images.index_copy_(0, mirrored, images.index_select(0, mirrored).flip(-1))
        chances = self.draw("caption", step)[share].tolist()
        texts = [self.pairs[k].captions for k in indices.tolist()]
        return images, [t[int(u * len(t))] for t, u in zip(texts, chances, strict=True)]

    def stream(self, first_step: int = 0) -> Iterator[tuple[Images, list[str]]]:
        """The batches of first_step, first_step + 1, ... without end."""
        if self.pixels is not None or self.workers == 0:
            yield from map(self.__getitem__, itertools.count(first_step))
        loader = DataLoader(
            Attempts(self),
            batch_size=None,  # an item is a whole batch
            sampler=itertools.count(first_step),
            num_workers=self.workers,
            collate_fn=unchanged,
        )
        for batch in loader:
            if isinstance(batch, Exception):
                raise batch
            yield batch

    def read(self, indices: Int[Tensor, " b"], step: int) -> Images:
        """Decodes this rank's images; a random crop follows from the image's place in the run."""
        first = step * self.order.batch_size + self.rank
        images = []
        for place, k in enumerate(indices.tolist()):
            generator = seeded(self.seed, "crop", first + place * self.ranks)
            images.append(torch.from_numpy(self.transform(self.pairs[k].path, generator)))
        return torch.stack(images)

    def draw(self, purpose: str, step: int) -> Tensor:
        """A number in [0, 1) for each image of the step's batch, the same on every rank."""
        return torch.rand(self.order.batch_size, generator=seeded(self.seed, purpose, step))


class Attempts(Dataset):
    """Hands errors over as values: raised in a worker, they arrive wrapped in a traceback."""

    def __init__(self, batches: ImageBatches):
        self.batches = batches

    def __getitem__(self, step: int) -> tuple[Images, list[str]] | Exception:
        try:
            return self.batches[step]
        except (ValueError, OSError) as error:
            return error


def unchanged(batch):
    return batch


def seeded(seed: int, purpose: str, number: int) -> torch.Generator:
    """Independent randomness for one purpose at one moment of the run."""
    digest = hashlib.sha256(f"{seed} {purpose} {number}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8]) >> 1)


def read_pixels(
    paths: Sequence[Path], transform: ImageTransform, progress: Progress = silent
) -> Images:
    """Decodes all files into one tensor.

    Raises:
        ValueError: some cannot be used; each is named with its reason.
    """
    shape = (len(paths), transform.channels, transform.size, transform.size)
    pixels = torch.empty(shape, dtype=transform.format.in_memory)
    array = pixels.numpy()

    def read(k: int) -> UnusableImage | None:
        try:
            array[k] = transform(paths[k])
        except UnusableImage as error:
            return error

    with ThreadPoolExecutor(os.cpu_count()) as pool:  # Pillow decodes outside Python's lock
        results = pool.map(read, range(len(paths)))
        unusable = [error for error in progress(results, "reading images", len(paths)) if error]
    if unusable:
        raise ValueError(f"{len(unusable)} images cannot be used:\n{listed(unusable)}")
    return pixels
