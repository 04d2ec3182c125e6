"""The order of images: a pure function of seed and step in which every epoch is a permutation."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dataset.order import BucketOrder, Order, positions_in_bucket
from foundation.errors import UserError

GOLDEN_ORDER = [5, 0, 3, 4, 1, 6, 2, 2, 1, 3, 5, 0, 6, 4, 6]
GOLDEN_BUCKET_ORDER = [1, 3, 0, 5, 6, 2, 4, 1, 3, 4, 0, 2, 5, 6, 3, 1]
SEEDS = st.integers(0, 2**63 - 1)


@st.composite
def sizes(draw, most: int = 40) -> tuple[int, int]:
    """Draw (number of images, batch size)."""
    count = draw(st.integers(1, most))
    return count, draw(st.integers(1, count))


def first_batches(order: Order | BucketOrder, steps: int) -> torch.Tensor:
    """Return the images of the first steps, one after the other."""
    return torch.cat([order.indices(step) for step in range(steps)])


@given(sizes(), SEEDS)
def test_every_epoch_is_a_permutation(size, seed):
    count, batch_size = size
    epochs = first_batches(Order(count, batch_size, seed), count).view(batch_size, count)
    assert (epochs.sort(dim=1).values == torch.arange(count)).all()


def test_every_epoch_has_another_order():
    epochs = first_batches(Order(count=7, batch_size=4, seed=0), 7).view(4, 7)
    assert not any(torch.equal(one, other) for one, other in pairwise(epochs))


@given(sizes(), SEEDS, st.data())
def test_the_batch_size_does_not_change_the_order(size, seed, data):
    count, batch_size = size
    other_size = data.draw(st.integers(1, count))
    ours = first_batches(Order(count, batch_size, seed), 3 * count)
    other = first_batches(Order(count, other_size, seed), 3 * count)
    length = min(len(ours), len(other))
    assert torch.equal(ours[:length], other[:length])


@given(sizes(), SEEDS, st.lists(st.integers(0, 100), max_size=20))
def test_a_batch_depends_on_seed_and_step_alone(size, seed, steps):
    order = Order(*size, seed)
    for step in steps:
        assert torch.equal(order.indices(step), Order(*size, seed).indices(step))


def test_another_seed_gives_another_order():
    one, other = (first_batches(Order(7, 4, seed), 20) for seed in (3, 4))
    assert not torch.equal(one, other)


def test_the_order_of_earlier_versions_is_kept():
    """Runs that were begun with an earlier version must resume with the same images."""
    assert first_batches(Order(7, 3, seed=5), 5).tolist() == GOLDEN_ORDER
    buckets = BucketOrder(np.array([0, 1, 0, 1, 1, 0, 0]), 2, seed=5)
    assert first_batches(buckets, 8).tolist() == GOLDEN_BUCKET_ORDER


@pytest.mark.parametrize(("count", "batch_size"), [(0, 4), (3, 4), (3, 0)])
def test_a_batch_larger_than_the_set_or_empty_is_refused(count, batch_size):
    with pytest.raises(UserError):
        Order(count, batch_size, seed=0)


def test_a_batch_as_large_as_the_set_is_accepted():
    assert Order(4, 4, seed=0).indices(5).sort().values.tolist() == [0, 1, 2, 3]


# Buckets ------------------------------------------------------------------------------------------


def shuffled_buckets(sizes: list[int], seed: int = 0) -> np.ndarray:
    """Return the bucket of each image, for buckets of these sizes."""
    bucket = np.repeat(np.arange(len(sizes), dtype=np.uint8), sizes)
    return np.random.default_rng(seed).permutation(bucket)


@given(sizes(), SEEDS)
def test_a_single_bucket_gives_the_plain_order(size, seed):
    count, batch_size = size
    plain, order = Order(*size, seed), BucketOrder(np.zeros(count, np.uint8), batch_size, seed)
    assert torch.equal(first_batches(order, 30), first_batches(plain, 30))


@given(st.lists(st.integers(0, 20), min_size=1, max_size=5), st.integers(1, 6), SEEDS)
def test_every_image_of_every_bucket_is_used_equally_often(extra, batch_size, seed):
    sizes = [batch_size + more for more in extra]  # each bucket has at least one batch
    bucket = shuffled_buckets(sizes)
    order = BucketOrder(bucket, batch_size, seed)
    steps = 5 * order.steps_per_round
    counts = Counter()
    for step in range(steps):
        indices = order.indices(step).tolist()
        assert len(indices) == batch_size
        assert len(set(bucket[indices].tolist())) == 1
        counts.update(indices)
    for k, size in enumerate(sizes):
        uses = [counts[image] for image in np.flatnonzero(bucket == k).tolist()]
        assert max(uses) - min(uses) <= 1
        assert abs(sum(uses) - steps * batch_size * size / len(bucket)) <= batch_size + 1e-6
    assert sum(counts.values()) == steps * batch_size


@given(SEEDS, st.lists(st.integers(0, 60), max_size=10))
def test_a_batch_of_buckets_depends_on_seed_and_step_alone(seed, steps):
    bucket = shuffled_buckets([30, 12, 9])
    order = BucketOrder(bucket, 4, seed)
    for step in steps:
        assert torch.equal(order.indices(step), BucketOrder(bucket, 4, seed).indices(step))


def test_rounds_are_shuffled():
    order = BucketOrder(shuffled_buckets([30, 12, 9]), 4, seed=3)
    buckets = [order.locate(step)[0] for step in range(2 * order.steps_per_round)]
    assert buckets[: order.steps_per_round] != buckets[order.steps_per_round :]


@given(st.lists(st.integers(0, 4), max_size=30))
def test_positions_count_the_earlier_images_of_a_bucket(bucket):
    expected = [bucket[:k].count(value) for k, value in enumerate(bucket)]
    assert positions_in_bucket(np.array(bucket, np.uint8)).tolist() == expected
