"""Shapes of equal area; batches of one shape; every image equally often."""

from collections import Counter
from itertools import islice

import numpy as np
import pytest
import torch

from dataset.buckets import Buckets, choose_buckets, shapes_up_to
from dataset.folder import read_folder
from dataset.images.transform import ImageTransform
from dataset.loader import ImageBatches
from dataset.order import BucketOrder, Order
from tests.helpers.images import picture, table, write_metadata

TRANSFORM = ImageTransform(8)


@pytest.mark.parametrize(("size", "multiple"), [(64, 8), (512, 64), (48, 16), (256, 32)])
def test_shapes_have_about_the_area_of_the_square(size, multiple):
    shapes = shapes_up_to(2.0, size, multiple)
    assert (size, size) in shapes
    assert len(shapes) > 2
    for width, height in shapes:
        assert (height, width) in shapes
        assert width % multiple == height % multiple == 0
        assert max(width, height) <= 2 * min(width, height)
        assert size * size - multiple * max(width, height) < width * height <= size * size
    ratios = [width / height for width, height in shapes]
    assert ratios == sorted(ratios) and len(set(ratios)) == len(ratios)


def test_no_aspect_ratio_but_1_is_the_square():
    assert shapes_up_to(1.0, 64, 8) == [(64, 64)]


def test_an_image_takes_the_nearest_shape():
    buckets = Buckets([(32, 128), (64, 64), (128, 32)])
    sizes = {(100, 100): 1, (100, 199): 1, (100, 201): 0, (201, 100): 2, (1000, 1): 2, (3, 4): 1}
    for size, expected in sizes.items():
        assert buckets.of(table({"a.png": ["x"]}, size=size).pairs).tolist() == [expected]


def test_shapes_with_less_than_a_batch_are_given_up(tmp_path):
    pairs = mixed(tmp_path, 3, 9, 1)
    shapes = [(4, 16), (8, 8), (16, 4)]
    assert choose_buckets(pairs, shapes, 1).shapes == shapes
    assert choose_buckets(pairs, shapes, 2).shapes == shapes[:2]
    assert choose_buckets(pairs, shapes, 4).shapes == [(8, 8)]
    assert choose_buckets(pairs, shapes, 99).shapes == [(8, 8)]


def bucketed(sizes: list[int], seed: int = 0) -> np.ndarray:
    bucket = np.repeat(np.arange(len(sizes), dtype=np.uint8), sizes)
    return np.random.default_rng(seed).permutation(bucket)


def test_a_single_bucket_is_the_plain_order():
    plain, order = Order(7, 4, seed=3), BucketOrder(np.zeros(7, np.uint8), 4, seed=3)
    for step in range(30):
        assert torch.equal(order.indices(step), plain.indices(step))


@pytest.mark.parametrize("sizes", [[4, 4], [5, 19, 8], [100, 4, 37, 11, 4]])
def test_every_image_of_every_bucket_comes_equally_often(sizes):
    bucket = bucketed(sizes)
    order = BucketOrder(bucket, batch_size=4, seed=0)
    rounds = 12
    seen = Counter()
    for step in range(rounds * order.length):
        indices = order.indices(step)
        assert len(set(bucket[indices].tolist())) == 1
        assert len(set(indices.tolist())) == 4 or len(indices) == 4
        seen.update(indices.tolist())
    for k, size in enumerate(sizes):
        counts = [seen[j] for j in np.flatnonzero(bucket == k).tolist()]
        assert max(counts) - min(counts) <= 1
        expected = rounds * order.length * 4 / len(bucket)
        assert abs(sum(counts) / size - expected) <= 4 / size + 1e-9
    assert sum(seen.values()) == rounds * order.length * 4


def test_the_order_is_a_function_of_seed_and_step():
    bucket = bucketed([30, 12, 9])
    straight = [BucketOrder(bucket, 4, seed=3).indices(step) for step in range(60)]
    order = BucketOrder(bucket, 4, seed=3)
    for step in (59, 0, 13, 12, 26, 13, 40):
        assert torch.equal(order.indices(step), straight[step])
    other = [BucketOrder(bucket, 4, seed=4).indices(step) for step in range(60)]
    assert not torch.equal(torch.stack(other), torch.stack(straight))
    buckets = [int(bucket[indices[0]]) for indices in straight]
    assert buckets[:13] != buckets[13:26]  # the rounds are shuffled


def mixed(root, tall: int, square: int, wide: int):
    sizes = [(4, 16)] * tall + [(8, 8)] * square + [(16, 4)] * wide
    rows = []
    for k, size in enumerate(sizes):
        picture(root / f"{k:03d}.png", seed=k, size=size)
        rows.append({"file_name": f"{k:03d}.png", "text": str(k)})
    write_metadata(root, rows)
    return read_folder(root).pairs


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_batches_hold_one_shape_and_the_right_pixels(tmp_path):
    pairs = mixed(tmp_path, 5, 9, 4)
    buckets = Buckets([(4, 16), (8, 8), (16, 4)])

    def stream(first: int = 0, **options):
        made = ImageBatches(pairs, TRANSFORM, 4, seed=1, buckets=buckets, flip=True, **options)
        return list(islice(made.stream(first), 12 - first))

    straight = stream()
    shapes = Counter(tuple(images.shape[2:]) for images, _ in straight)
    assert shapes.keys() == {(16, 4), (8, 8), (4, 16)}
    for images, captions in straight:
        for image, caption in zip(images, captions, strict=True):
            exact = torch.from_numpy(picture_of(pairs, int(caption), buckets))
            assert torch.equal(image, exact) or torch.equal(image.flip(-1), exact)
    decoded = stream(5, in_memory=0, workers=1)
    shares = [stream(rank=rank, ranks=2) for rank in (0, 1)]
    for step, (images, captions) in enumerate(straight):
        if step >= 5:
            assert torch.equal(decoded[step - 5][0], images)
            assert decoded[step - 5][1] == captions
        for rank in (0, 1):
            assert torch.equal(shares[rank][step][0], images[rank::2])


def picture_of(pairs, k: int, buckets: Buckets) -> np.ndarray:
    return buckets.transforms(TRANSFORM)[int(buckets.of(pairs)[k])](pairs[k].path)


def test_an_image_of_a_buckets_shape_is_not_touched(tmp_path):
    path = picture(tmp_path / "a.png", size=(48, 80))
    (transform,) = Buckets([(48, 80)]).transforms(ImageTransform(64))
    direct = ImageTransform(64, crop="none", sides=(48, 80))(path)
    assert (transform(path) == direct).all()
    assert direct.shape == (3, 80, 48)


@pytest.mark.parametrize("crop", ["center", "letterbox"])
def test_a_wide_image_in_a_wide_bucket_keeps_its_proportions(tmp_path, crop):
    """A picture that is dark left of its middle is so after it, too."""
    from PIL import Image

    values = np.zeros((30, 80, 3), np.uint8)
    values[:, 40:] = 255
    Image.fromarray(values).save(tmp_path / "half.png")
    out = ImageTransform(8, crop=crop, sides=(16, 4))(tmp_path / "half.png")
    assert out.shape == (3, 4, 16)
    middle = out[:, 1:3]
    if crop == "center":
        assert (middle[..., :6] < 30).all() and (middle[..., 10:] > 225).all()
    else:
        assert (middle[..., 4:7] < 30).all() and (middle[..., 9:12] > 225).all()
        assert (out[..., 0] == 255).all()
