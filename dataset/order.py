"""Which images form the batch of a step; it follows from the seed and the step alone."""

import numpy as np
import torch
from jaxtyping import Int, Shaped
from torch import Tensor

from foundation.errors import UserError
from foundation.hashing import seed_from


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
        epoch, first = divmod(step * self.batch_size, self.count)
        indices = self.permutation(epoch)[first : first + self.batch_size]
        if missing := self.batch_size - len(indices):
            indices = torch.cat([indices, self.permutation(epoch + 1)[:missing]])
        return indices

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
        raise UserError(f"batch size is {batch_size}; it must be at least 1.")
    if count < batch_size:
        raise UserError(
            f"there are {count} images to train on, fewer than one batch of {batch_size}. "
            f"Use --batch-size {max(count, 1)} or smaller, or add images."
        )


class BucketOrder:
    """The same for images in buckets, of which a batch holds one at a time.

    The steps come in rounds, each about as long as an epoch. In a round every bucket has as many
    batches as its share of the images, in a random order; fractions are carried over. Within a
    bucket `Order` holds. With a single bucket the batches are those of `Order`.
    """

    def __init__(self, bucket: Shaped[np.ndarray, " n"], batch_size: int, seed: int):
        self.count, self.batch_size, self.seed = len(bucket), batch_size, seed
        check_batch_size(batch_size, self.count)
        sizes = np.bincount(bucket).tolist()
        self.members = members_of(bucket, len(sizes))
        self.ends = np.cumsum([0, *sizes])
        self.orders = [
            Order(size, batch_size, seed if k == 0 else derived(seed, "bucket", k))
            for k, size in enumerate(sizes)
        ]
        self.length = -(-self.count // batch_size)  # steps of a round
        self.round: tuple[int, Tensor, Tensor] | None = None  # the last one used

    def indices(self, step: int) -> Int[Tensor, " b"]:
        bucket, inner = self.batch(step)
        return self.members[bucket][self.orders[bucket].indices(inner)]

    def batch(self, step: int) -> tuple[int, int]:
        """The bucket of this step, and how many batches of it came before."""
        number, place = divmod(step, self.length)
        if self.round is None or self.round[0] != number:
            self.round = (number, *self.draw(number))
        _, buckets, inner = self.round
        return int(buckets[place]), int(inner[place])

    def draw(self, number: int) -> tuple[Int[Tensor, " steps"], Int[Tensor, " steps"]]:
        before, after = self.batches_before(number), self.batches_before(number + 1)
        counts = torch.from_numpy(after - before)
        buckets = torch.repeat_interleave(torch.arange(len(counts)), counts)
        inner = torch.cat(
            [torch.arange(a, b) for a, b in zip(before.tolist(), after.tolist(), strict=True)]
        )
        if len(counts) == 1:
            return buckets, inner
        order = torch.randperm(self.length, generator=seeded(self.seed, "round", number))
        buckets = buckets[order]
        return buckets, torch.from_numpy(before)[buckets] + rank_among_equals(buckets)

    def batches_before(self, number: int) -> Shaped[np.ndarray, " buckets"]:
        """Batches of each bucket in all rounds before this one.

        Differences of rounded-down cumulative shares: they add up to the number of steps, and none
        ever falls, because every bucket has at least one batch in a round.
        """
        steps = number * self.length
        return np.diff([steps * end // self.count for end in self.ends.tolist()])


def rank_among_equals(values: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
    """How many equal values come before each."""
    order = values.argsort(stable=True)
    counts = values.bincount()
    starts = (counts.cumsum(0) - counts)[values[order]]
    ranks = torch.empty_like(values)
    ranks[order] = torch.arange(len(values)) - starts
    return ranks


def members_of(bucket: Shaped[np.ndarray, " n"], count: int) -> list[Int[Tensor, " members"]]:
    return [torch.from_numpy(np.flatnonzero(bucket == k)) for k in range(count)]


def places_within(bucket: Shaped[np.ndarray, " n"]) -> Int[Tensor, " n"]:
    """How many of the same bucket come before each."""
    return rank_among_equals(torch.from_numpy(bucket.astype(np.int64)))


def derived(seed: int, purpose: str, number: int) -> int:
    return seed_from(f"{seed} {purpose} {number}".encode(), "big")


def seeded(seed: int, purpose: str, number: int) -> torch.Generator:
    """Independent randomness for one purpose at one moment of the run."""
    return torch.Generator().manual_seed(derived(seed, purpose, number))
