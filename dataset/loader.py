"""Batches of pixels and captions; which ones, follows from the seed and the step alone."""

import itertools
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from jaxtyping import Float32, Int, UInt8
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from dataset.buckets import Buckets
from dataset.captions import listed
from dataset.images.transform import ImageTransform, UnusableImage
from dataset.members import Source
from dataset.order import BucketOrder, members_of, places_within, seeded
from dataset.progress import Progress, silent
from dataset.table import Pair
from foundation.errors import UserError

Images = UInt8[Tensor, "b c h w"] | Float32[Tensor, "b c h w"]  # as ImageTransform has them
IN_MEMORY = 2**30  # bytes of decoded pixels that are kept rather than decoded again every epoch


class ImageBatches(Dataset):
    """Pairs as batches: `batches[step]`, or `batches.stream(first_step)` to read ahead.

    If all pixels fit into `in_memory` bytes they are decoded once, here, and a batch is one
    gather. Otherwise `workers` processes decode batches ahead of time.

    Args:
        batch_size: images of one step, of all ranks together.
        flip: mirror half of the images. Off, because captions say "left" and letters do not
            read backwards.
        buckets: shapes other than the square; all images of a batch then have the same.
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
        buckets: Buckets | None = None,
        rank: int = 0,
        ranks: int = 1,
        in_memory: int = IN_MEMORY,
        progress: Progress = silent,
    ):
        if batch_size % ranks:
            raise UserError(
                f"a batch of {batch_size} does not divide among {ranks} processes; "
                f"use --batch-size {max(batch_size // ranks, 1) * ranks}."
            )
        self.pairs, self.seed = pairs, seed
        self.transforms = buckets.transforms(transform) if buckets else [transform]
        self.bucket = buckets.of(pairs) if buckets else np.zeros(len(pairs), np.uint8)
        self.order = BucketOrder(self.bucket, batch_size, seed)
        self.workers, self.flip, self.rank, self.ranks = workers, flip, rank, ranks
        areas = np.array([width * height for width, height in (t.shape for t in self.transforms)])
        bytes_each = transform.channels * transform.format.in_memory.itemsize
        needed = int(areas[self.bucket].sum()) * bytes_each
        self.pixels: list[Images] | None = None  # those of each bucket, in the order of the pairs
        if needed <= in_memory and transform.crop != "random":
            self.pixels = self.read_all(progress)
            self.places = places_within(self.bucket)

    def __getitem__(self, step: int) -> tuple[Images, list[str]]:
        share = slice(self.rank, None, self.ranks)
        indices = self.order.indices(step)[share]
        if self.pixels is None:
            images = self.read(indices, step)
        else:
            held = self.pixels[self.bucket[indices[0]]]
            # ten times faster than held[...]
            images = held.index_select(0, self.places.index_select(0, indices))
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
        transform, images = self.transforms[self.bucket[indices[0]]], []
        for place, k in enumerate(indices.tolist()):
            generator = seeded(self.seed, "crop", first + place * self.ranks)
            images.append(torch.from_numpy(transform(self.pairs[k].path, generator)))
        return torch.stack(images)

    def read_all(self, progress: Progress) -> list[Images]:
        return [
            read_pixels([self.pairs[k].path for k in members.tolist()], transform, progress)
            for transform, members in zip(
                self.transforms, members_of(self.bucket, len(self.transforms)), strict=True
            )
        ]

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


def read_pixels(
    paths: Sequence[Source], transform: ImageTransform, progress: Progress = silent
) -> Images:
    """Decodes all files into one tensor.

    Raises:
        ValueError: some cannot be used; each is named with its reason.
    """
    shape = (len(paths), transform.channels, *reversed(transform.shape))
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
        raise UserError(f"{len(unusable)} images cannot be used:\n{listed(unusable)}")
    return pixels
