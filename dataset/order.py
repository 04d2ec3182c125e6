"""The images in the batch of each step, as a pure function of the seed and the step.

So nothing about the order is saved in checkpoints: a resumed run continues with the next image.
"""

import numpy as np
import torch
from jaxtyping import Int, Shaped
from torch import Tensor

from dataset.table import TAKEN_AT_ONCE, smallest_int
from foundation.errors import UserError
from foundation.seeds import seed_from


class Order:
    """Epochs one after the other, each a new random permutation of all images.

    Batches continue across the end of an epoch, so every image is used equally often and none is
    dropped.
    """

    def __init__(self, count: int, batch_size: int, seed: int):
        check_batch_size(batch_size, count)
        self.count, self.batch_size, self.seed = count, batch_size, seed
        self.dtype = torch.int32 if count < 2**31 else torch.int64
        self.epoch: tuple[int, Tensor] | None = None  # cache: number, permutation(number)

    def indices(self, step: int) -> Int[Tensor, " b"]:
        """Return the images in the batch of a step, counted from 0."""
        epoch, first = divmod(step * self.batch_size, self.count)
        indices = self.permutation(epoch)[first : first + self.batch_size].long()
        if missing := self.batch_size - len(indices):
            indices = torch.cat([indices, self.permutation(epoch + 1)[:missing].long()])
        return indices

    def permutation(self, epoch: int) -> Int[Tensor, " n"]:
        """Return the order of all images in an epoch."""
        if self.epoch is None or self.epoch[0] != epoch:
            self.epoch = None  # its memory is free before the next one takes as much
            generator = purpose_generator(self.seed, "epoch", epoch)
            self.epoch = (
                epoch,
                torch.randperm(self.count, generator=generator, dtype=self.dtype),
            )
        return self.epoch[1]


def check_batch_size(batch_size: int, count: int) -> None:
    """Raise a UserError if a batch would be empty, or would hold an image twice."""
    if batch_size < 1:
        raise UserError(f"batch size is {batch_size}; it must be at least 1.")
    if count < batch_size:
        raise UserError(
            f"there are {count} images to train on, fewer than one batch of {batch_size}. "
            f"Use batch_size {max(count, 1)} or smaller, or add images."
        )


class BucketOrder:
    """Order of images in buckets, where all images of a batch belong to the same bucket.

    The steps form rounds, each about as long as an epoch. In a round every bucket has as many
    batches as its share of the images, in random order; fractions are carried over to the next
    round. Within a bucket the batches are those of `Order`, and so they are if there is only one
    bucket.

    Args:
        bucket: number of each image's bucket.
    """

    def __init__(self, bucket: Shaped[np.ndarray, " n"], batch_size: int, seed: int):
        self.count, self.batch_size, self.seed = len(bucket), batch_size, seed
        check_batch_size(batch_size, self.count)
        sizes = bucket_sizes(bucket).tolist()
        # One bucket holds all images, and a list of all numbers would only take memory.
        self.members = bucket_members(bucket, len(sizes)) if len(sizes) > 1 else None
        self.ends = np.cumsum([0, *sizes])
        self.orders = [
            Order(size, batch_size, seed if k == 0 else purpose_seed(seed, "bucket", k))
            for k, size in enumerate(sizes)
        ]
        self.steps_per_round = -(-self.count // batch_size)
        self.round: tuple[int, Tensor, Tensor] | None = None  # cache: number, draw_round(number)

    def indices(self, step: int) -> Int[Tensor, " b"]:
        """Return the images in the batch of a step, counted from 0."""
        bucket, step_in_bucket = self.locate(step)
        indices = self.orders[bucket].indices(step_in_bucket)
        return indices if self.members is None else self.members[bucket][indices].long()

    def locate(self, step: int) -> tuple[int, int]:
        """Return the bucket of a step, and how many earlier steps had the same bucket."""
        number, position = divmod(step, self.steps_per_round)
        if self.round is None or self.round[0] != number:
            self.round = (number, *self.draw_round(number))
        _, buckets, steps_in_bucket = self.round
        return int(buckets[position]), int(steps_in_bucket[position])

    def draw_round(self, number: int) -> tuple[Int[Tensor, " steps"], Int[Tensor, " steps"]]:
        """Return for each step of a round its bucket, and how many earlier steps had the same."""
        before, after = self.batches_before(number), self.batches_before(number + 1)
        counts = torch.from_numpy(after - before)
        buckets = torch.repeat_interleave(torch.arange(len(counts)), counts)
        if len(counts) > 1:
            generator = purpose_generator(self.seed, "round", number)
            buckets = buckets[torch.randperm(self.steps_per_round, generator=generator)]
        return buckets, torch.from_numpy(before)[buckets] + count_earlier_equals(buckets)

    def batches_before(self, number: int) -> Int[np.ndarray, " buckets"]:
        """Return how many batches each bucket has had before a round.

        The numbers are differences of rounded-down cumulative shares. They add up to the number of
        steps, and none of them ever falls, because every bucket has a batch in each round.
        """
        steps = number * self.steps_per_round
        return np.diff([steps * end // self.count for end in self.ends.tolist()])


def count_earlier_equals(values: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
    """Return for each value how many equal values come before it."""
    order = values.argsort(stable=True)
    counts = values.bincount()
    starts = (counts.cumsum(0) - counts)[values[order]]
    earlier = torch.empty_like(values)
    earlier[order] = torch.arange(len(values)) - starts
    return earlier


def bucket_members(bucket: Shaped[np.ndarray, " n"], count: int) -> list[Int[Tensor, " _"]]:
    """List for each of `count` buckets the images that belong to it."""
    dtype = smallest_int(len(bucket))
    return [torch.from_numpy(np.flatnonzero(bucket == k).astype(dtype)) for k in range(count)]


def bucket_sizes(bucket: Shaped[np.ndarray, " n"], count: int = 0) -> Int[np.ndarray, " buckets"]:
    """Count the images of each bucket; `count`: the least number of buckets.

    Some at a time, because numpy makes 64-bit numbers of what it counts.
    """
    count = max(count, int(bucket.max()) + 1 if len(bucket) else 0)
    sizes = np.zeros(count, np.int64)
    for start in range(0, len(bucket), TAKEN_AT_ONCE):
        sizes += np.bincount(bucket[start : start + TAKEN_AT_ONCE], minlength=count)
    return sizes


def positions_in_bucket(bucket: Shaped[np.ndarray, " n"]) -> Int[Tensor, " n"]:
    """Return for each image its position among the images of its bucket."""
    return count_earlier_equals(torch.from_numpy(bucket.astype(np.int64)))


def purpose_seed(seed: int, purpose: str, number: int) -> int:
    """Derive a seed for one purpose at one moment of a run."""
    return seed_from(f"{seed} {purpose} {number}".encode(), "big")


def purpose_generator(seed: int, purpose: str, number: int) -> torch.Generator:
    """Make a generator for one purpose at one moment of a run."""
    return torch.Generator().manual_seed(purpose_seed(seed, purpose, number))
