"""Batches of pixels and captions, which follow from the seed and the step alone."""

import itertools
import signal
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from dataset.ahead import Ahead
from dataset.buckets import Buckets
from dataset.captions.choice import CaptionDraws
from dataset.images.transform import ImageTransform, PixelTensor
from dataset.order import (
    BucketOrder,
    bucket_members,
    bucket_sizes,
    positions_in_bucket,
    purpose_generator,
)
from dataset.parallel import Progress, map_in_threads, no_progress
from dataset.source import Source, UnusableImage, as_lines
from dataset.table import Pair, PairList
from foundation.errors import UserError

IN_MEMORY = 2**30  # bytes; smaller data sets are decoded once and kept in memory

Batch = tuple[PixelTensor, list[str]]  # pixels (b, c, h, w) and one caption per image


class ImageBatches(Dataset[Batch]):
    """Image-text pairs as batches: `batches[step]`, or `batches.stream(first_step)`.

    If all pixels fit into `in_memory` bytes, they are decoded when the object is made, and a batch
    is one gather. Otherwise `workers` processes decode batches ahead of time.

    Args:
        batch_size: images per step, of all ranks together.
        seed: of the order, the crops, the choice of captions and the mirroring.
        workers: processes that decode; 0: this process decodes.
        flip: mirror half of the images. Off by default, because captions say "left", and letters
            cannot be read mirrored.
        buckets: shapes other than the square; all images of a batch then have the same shape. Needs
            `PairList`, which know the sizes of their images.
        rank, world_size: this process gets images rank, rank + world_size, ... of each batch.
        in_memory: limit in bytes for the pixels of all images.
        draws: the texts of the pairs; None: their captions, each as likely as the others.

    Raises:
        UserError: the batch size does not fit the ranks or the number of images, or images cannot
            be read.
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
        world_size: int = 1,
        in_memory: int = IN_MEMORY,
        draws: CaptionDraws | None = None,
        progress: Progress = no_progress,
    ):
        if batch_size % world_size:
            raise UserError(
                f"a batch of {batch_size} does not divide among {world_size} processes; "
                f"use batch_size {max(batch_size // world_size, 1) * world_size}."
            )
        self.pairs, self.seed, self.draws = pairs, seed, draws
        self.workers, self.flip, self.rank, self.world_size = workers, flip, rank, world_size
        self.transforms, self.bucket = assign_transforms(pairs, transform, buckets)
        self.order = BucketOrder(self.bucket, batch_size, seed)
        self.pixels: list[PixelTensor] | None = None  # of each bucket, in the order of the pairs
        fits = bytes_needed(self.transforms, self.bucket) <= in_memory
        if fits and transform.crop != "random":
            self.pixels = read_all(pairs, self.transforms, self.bucket, progress)
            self.positions = positions_in_bucket(self.bucket)

    def __getitem__(self, step: int) -> Batch:
        share = slice(self.rank, None, self.world_size)
        indices = self.order.indices(step)[share]
        if self.pixels is None:
            images = self.read(indices, step)
        else:
            pixels = self.pixels[self.bucket[indices[0]]]
            # index_select is ten times faster than indexing with [...].
            images = pixels.index_select(0, self.positions.index_select(0, indices))
        if self.flip:
            mirrored = (self.draw("flip", step)[share] < 0.5).nonzero().flatten()
            images.index_copy_(0, mirrored, images.index_select(0, mirrored).flip(-1))
        return images, self.captions(indices, self.draw("caption", step)[share])

    def captions(self, indices: Int[Tensor, " b"], numbers: Float[Tensor, " b"]) -> list[str]:
        """Return a caption of each of these pairs; numbers: random ones in [0, 1)."""
        if self.draws is not None:
            positions: list[int] = self.draws.draw(indices, numbers.double()).tolist()
            texts = self.draws.texts
            return [texts[k] for k in positions]
        own = [self.pairs[k].captions for k in indices.tolist()]
        return [
            captions[int(number * len(captions))]
            for captions, number in zip(own, numbers.tolist(), strict=True)
        ]

    def stream(self, first_step: int = 0) -> Iterator[Batch]:
        """Yield the batches of first_step, first_step + 1, ... without end."""
        with Ahead(self.sources(first_step) if self.pixels is None else ()) as ahead:
            for batch in self.read_stream(first_step):
                ahead.advance()
                yield batch

    def sources(self, first_step: int) -> Iterator[list[Source]]:
        """Yield the images of this rank in each step, from which the next ones can be fetched."""
        share = slice(self.rank, None, self.world_size)
        order = BucketOrder(
            self.bucket, self.order.batch_size, self.seed
        )  # with a cache of its own
        for step in itertools.count(first_step):
            yield [self.pairs[k].path for k in order.indices(step)[share].tolist()]

    def read_stream(self, first_step: int) -> Iterator[Batch]:
        """Yield batches as `stream`, in this process or by workers."""
        if self.pixels is not None or self.workers == 0:
            yield from map(self.__getitem__, itertools.count(first_step))
        loader = DataLoader(
            BatchesOrErrors(self),
            batch_size=None,  # an item is a whole batch
            sampler=itertools.count(first_step),
            num_workers=self.workers,
            collate_fn=return_unchanged,
            worker_init_fn=ignore_interrupts,
        )
        for batch in loader:
            if isinstance(batch, Exception):
                raise batch
            yield batch

    def read(self, indices: Int[Tensor, " b"], step: int) -> PixelTensor:
        """Decode this rank's images; a random crop follows from an image's number in the run."""
        first = step * self.order.batch_size + self.rank
        transform = self.transforms[self.bucket[indices[0]]]
        images: list[Tensor] = []
        for position, k in enumerate(indices.tolist()):
            number = first + position * self.world_size
            generator = purpose_generator(self.seed, "crop", number)
            images.append(torch.from_numpy(transform(self.pairs[k].path, generator)))
        return torch.stack(images)

    def draw(self, purpose: str, step: int) -> Float[Tensor, " batch_size"]:
        """Draw a number in [0, 1) for each image of the whole batch, the same on every rank."""
        generator = purpose_generator(self.seed, purpose, step)
        return torch.rand(self.order.batch_size, generator=generator)


def assign_transforms(
    pairs: Sequence[Pair], transform: ImageTransform, buckets: Buckets | None
) -> tuple[list[ImageTransform], UInt8[np.ndarray, " pairs"]]:
    """Return the transform of each bucket, and the bucket of each pair."""
    if buckets is None:
        return [transform], np.zeros(len(pairs), np.uint8)
    assert isinstance(pairs, PairList), "buckets need the sizes of the images"
    return buckets.transforms(transform), buckets.assign(pairs)


def bytes_needed(transforms: Sequence[ImageTransform], bucket: UInt8[np.ndarray, " pairs"]) -> int:
    """Compute the memory that the pixels of all images take."""
    areas = np.array([width * height for width, height in (t.shape for t in transforms)])
    bytes_per_pixel = transforms[0].channels * transforms[0].format.memory_dtype.itemsize
    return int(areas @ bucket_sizes(bucket, len(areas))) * bytes_per_pixel


def read_all(
    pairs: Sequence[Pair],
    transforms: Sequence[ImageTransform],
    bucket: UInt8[np.ndarray, " pairs"],
    progress: Progress = no_progress,
) -> list[PixelTensor]:
    """Decode all images, bucket by bucket."""
    members = bucket_members(bucket, len(transforms))
    return [
        read_pixels([pairs[k].path for k in own.tolist()], transform, progress)
        for transform, own in zip(transforms, members, strict=True)
    ]


class PixelStore:
    """The pixels of images by their number: kept in memory if all fit, else decoded when needed.

    Args:
        in_memory: limit in bytes for the pixels of all images.

    Raises:
        UserError: images cannot be read.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        transform: ImageTransform,
        buckets: Buckets | None = None,
        *,
        in_memory: int = IN_MEMORY,
        progress: Progress = no_progress,
    ):
        self.pairs, self.transform = pairs, transform
        self.transforms, self.bucket = assign_transforms(pairs, transform, buckets)
        self.kept: list[PixelTensor] | None = None
        if bytes_needed(self.transforms, self.bucket) <= in_memory:
            self.kept = read_all(pairs, self.transforms, self.bucket, progress)
            self.positions = positions_in_bucket(self.bucket)

    def __call__(self, indices: Int[Tensor, " b"]) -> PixelTensor:
        """Return the pixels of images of one shape."""
        bucket = int(self.bucket[int(indices[0])])
        if self.kept is not None:
            rows = self.positions.index_select(0, indices)
            return self.kept[bucket].index_select(0, rows)
        paths = [self.pairs[k].path for k in indices.tolist()]
        return read_pixels(paths, self.transforms[bucket])

    def square(self, number: int) -> PixelTensor:
        """Return the pixels of one image as a square, whatever the shapes are."""
        return read_pixels([self.pairs[number].path], self.transform)


class BatchesOrErrors(Dataset[Batch | Exception]):
    """Batches for worker processes, with errors as values.

    An exception that is raised in a worker arrives wrapped in a traceback; one that is returned
    arrives as it is.
    """

    def __init__(self, batches: ImageBatches):
        self.batches = batches

    def __getitem__(self, step: int) -> Batch | Exception:
        try:
            return self.batches[step]
        except (UserError, OSError) as error:
            return error


def return_unchanged(batch: Any) -> Any:
    """Stand in for DataLoader's collate function; it must be picklable, so it is no lambda."""
    return batch


def ignore_interrupts(worker: int) -> None:
    """Let a worker process go on at Ctrl-C, which a terminal sends to all: its parent ends it.

    A worker that is not forked, as on Windows and macOS, does not inherit the parent's handler.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def read_pixels(
    paths: Sequence[Source], transform: ImageTransform, progress: Progress = no_progress
) -> PixelTensor:
    """Decode all files into one tensor (n, c, h, w).

    Raises:
        UserError: some files cannot be read; they are named with the reasons.
    """
    shape = (len(paths), transform.channels, *reversed(transform.shape))
    pixels = torch.empty(shape, dtype=transform.format.memory_dtype)
    array = pixels.numpy()

    def read(k: int) -> UnusableImage | None:
        try:
            array[k] = transform(paths[k])
        except UnusableImage as error:
            return error

    results = progress(map_in_threads(read, range(len(paths))), "reading images", len(paths))
    unusable = [error for error in results if error]
    if unusable:
        raise UserError(f"{len(unusable)} images cannot be used:\n{as_lines(unusable)}")
    return pixels
