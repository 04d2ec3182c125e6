"""Aspect-ratio buckets: shapes of about the same area, and batches of a single shape."""

from collections import Counter
from itertools import islice, pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dataset.buckets import Buckets, bucket_shapes, choose_buckets
from dataset.folder import read_folder
from dataset.images.transform import ImageTransform
from dataset.loader import ImageBatches
from dataset.table import PairList
from foundation.errors import UserError
from tests.helpers.images import picture, table, write_metadata

TRANSFORM = ImageTransform(8)
THREE_SHAPES = [(4, 16), (8, 8), (16, 4)]  # tall, square, wide


@given(st.integers(1, 64), st.integers(1, 16), st.floats(1, 4))
def test_shapes_have_about_the_area_of_the_square(multiple, factor, max_aspect):
    size = multiple * factor
    shapes = bucket_shapes(max_aspect, size, multiple)
    assert (size, size) in shapes
    for width, height in shapes:
        assert (height, width) in shapes
        assert width % multiple == height % multiple == 0
        assert max(width, height) <= max_aspect * min(width, height)
        assert size * size - multiple * max(width, height) < width * height <= size * size
    ratios = [width / height for width, height in shapes]
    assert all(one <= other for one, other in pairwise(ratios))


@pytest.mark.parametrize(("size", "multiple"), [(64, 8), (512, 64), (48, 16), (256, 32)])
def test_there_are_several_shapes_up_to_2_to_1(size, multiple):
    assert len(bucket_shapes(2.0, size, multiple)) > 2


def test_aspect_ratio_1_gives_only_the_square():
    assert bucket_shapes(1.0, 64, 8) == [(64, 64)]


def test_more_shapes_than_can_be_numbered_are_refused_at_once():
    assert len(bucket_shapes(9, 512, 8)) == 251
    for max_aspect, size in ((1e9, 512), (4.0, 1024)):
        with pytest.raises(UserError, match=r"max_aspect .*256"):
            bucket_shapes(max_aspect, size, 8)
    assert len(bucket_shapes(1e30, 32, 4)) < 256


def test_an_image_belongs_to_the_nearest_shape():
    buckets = Buckets([(32, 128), (64, 64), (128, 32)])
    sizes = {(100, 100): 1, (100, 199): 1, (100, 201): 0, (201, 100): 2, (1000, 1): 2, (3, 4): 1}
    for size, expected in sizes.items():
        assert buckets.assign(table({"a.png": ["x"]}, size=size).pairs).tolist() == [expected]


def test_shapes_with_less_than_a_batch_of_images_are_removed(tmp_path):
    pairs = mixed_folder(tmp_path, tall=3, square=9, wide=1)
    assert choose_buckets(pairs, THREE_SHAPES, 1).shapes == THREE_SHAPES
    assert choose_buckets(pairs, THREE_SHAPES, 2).shapes == THREE_SHAPES[:2]
    assert choose_buckets(pairs, THREE_SHAPES, 4).shapes == [(8, 8)]
    assert choose_buckets(pairs, THREE_SHAPES, 99).shapes == [(8, 8)]


def mixed_folder(root, tall: int, square: int, wide: int) -> PairList:
    """Make images of three shapes; the caption is the number of the image."""
    sizes = [(4, 16)] * tall + [(8, 8)] * square + [(16, 4)] * wide
    rows = []
    for k, size in enumerate(sizes):
        picture(root / f"{k:03d}.png", seed=k, size=size)
        rows.append({"file_name": f"{k:03d}.png", "text": str(k)})
    write_metadata(root, rows)
    return read_folder(root).pairs


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_batches_hold_one_shape_and_the_right_pixels(tmp_path):
    pairs = mixed_folder(tmp_path, tall=5, square=9, wide=4)
    buckets = Buckets(THREE_SHAPES)
    transforms = buckets.transforms(TRANSFORM)

    def stream(first: int = 0, **options):
        batches = ImageBatches(pairs, TRANSFORM, 4, seed=1, buckets=buckets, flip=True, **options)
        return list(islice(batches.stream(first), 12 - first))

    unbroken = stream()
    shapes = Counter(tuple(images.shape[2:]) for images, _ in unbroken)
    assert shapes.keys() == {(16, 4), (8, 8), (4, 16)}
    for images, captions in unbroken:
        for image, caption in zip(images, captions, strict=True):
            k = int(caption)
            pixels = torch.from_numpy(transforms[buckets.assign(pairs)[k]](pairs[k].path))
            assert torch.equal(image, pixels) or torch.equal(image.flip(-1), pixels)
    decoded = stream(5, in_memory=0, workers=1)
    shares = [stream(rank=rank, world_size=2) for rank in (0, 1)]
    for step, (images, captions) in enumerate(unbroken):
        if step >= 5:
            assert torch.equal(decoded[step - 5][0], images)
            assert decoded[step - 5][1] == captions
        for rank in (0, 1):
            assert torch.equal(shares[rank][step][0], images[rank::2])


def test_an_image_of_its_buckets_shape_is_not_changed(tmp_path):
    path = picture(tmp_path / "a.png", size=(48, 80))
    (transform,) = Buckets([(48, 80)]).transforms(ImageTransform(64))
    pixels = ImageTransform(64, crop="none", sides=(48, 80))(path)
    assert (transform(path) == pixels).all()
    assert pixels.shape == (3, 80, 48)


@pytest.mark.parametrize("crop", ["center", "letterbox"])
def test_a_wide_image_in_a_wide_bucket_keeps_its_proportions(tmp_path, crop):
    """An image that is dark in its left half is dark in its left half afterwards."""
    values = np.zeros((30, 80, 3), np.uint8)
    values[:, 40:] = 255
    Image.fromarray(values).save(tmp_path / "half.png")
    pixels = ImageTransform(8, crop=crop, sides=(16, 4))(tmp_path / "half.png")
    assert pixels.shape == (3, 4, 16)
    middle = pixels[:, 1:3]
    if crop == "center":
        assert (middle[..., :6] < 30).all() and (middle[..., 10:] > 225).all()
    else:
        assert (middle[..., 4:7] < 30).all() and (middle[..., 9:12] > 225).all()
        assert (pixels[..., 0] == 255).all()
