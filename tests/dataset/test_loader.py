"""Batches: the right pixels with their captions, the same with any number of ranks and workers."""

from itertools import islice

import pytest
import torch

from dataset.folder import read_folder
from dataset.images.transform import ImageTransform
from dataset.loader import ImageBatches, read_pixels
from dataset.table import Pair
from foundation.errors import UserError
from tests.helpers.images import captioned, picture, truncated

TRANSFORM = ImageTransform(8)
FEW_CORES = "ignore:This DataLoader will create"  # a warning about machines with few cores


def make_batches(root, count=7, **options) -> ImageBatches:
    pairs = read_folder(captioned(root, count)).pairs
    return ImageBatches(pairs, TRANSFORM, **{"batch_size": 4, "seed": 1, **options})


def equal(ours, theirs) -> bool:
    pairs = list(zip(ours, theirs, strict=True))
    return all(torch.equal(a, b) and c == d for (a, c), (b, d) in pairs)


def test_captions_belong_to_their_images(tmp_path):
    batches = make_batches(tmp_path)
    for images, captions in islice(batches.stream(), 6):
        for image, caption in zip(images, captions, strict=True):
            k = int(caption.split()[-1])
            assert torch.equal(image, torch.from_numpy(TRANSFORM(tmp_path / f"{k:03d}.png")))


def test_a_resumed_stream_continues(tmp_path):
    batches = make_batches(tmp_path, flip=True)
    unbroken = list(islice(batches.stream(), 10))
    resumed = list(islice(make_batches(tmp_path, flip=True).stream(first_step=6), 4))
    assert equal(unbroken[6:], resumed)


@pytest.mark.filterwarnings(FEW_CORES)
def test_batches_from_workers_equal_those_from_memory(tmp_path):
    in_memory = make_batches(tmp_path, flip=True)
    decoded = make_batches(tmp_path, flip=True, in_memory=0, workers=2)
    inline = make_batches(tmp_path, flip=True, in_memory=0)
    assert in_memory.pixels is not None
    assert decoded.pixels is None
    expected = list(islice(in_memory.stream(3), 5))
    assert equal(expected, islice(decoded.stream(3), 5))
    assert equal(expected, islice(inline.stream(3), 5))


@pytest.mark.filterwarnings(FEW_CORES)
@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_is_damaged_during_training_is_named_in_one_line(tmp_path, workers):
    batches = make_batches(tmp_path, in_memory=0, workers=workers)
    (tmp_path / "003.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"^[^\n]*003\.png: [^\n]*$"):
        list(islice(batches.stream(), 3))


def test_images_are_mirrored_only_if_flip_is_set(tmp_path):
    upright = {image.numpy().tobytes() for image in make_batches(tmp_path).pixels[0]}

    def mirrored(flip: bool) -> list[bool]:
        stream = islice(make_batches(tmp_path, flip=flip).stream(), 7)
        return [image.numpy().tobytes() not in upright for images, _ in stream for image in images]

    assert not any(mirrored(False))
    assert 5 < sum(mirrored(True)) < 23
    assert mirrored(True) == mirrored(True)


def test_mirroring_does_not_change_the_pixels_in_memory(tmp_path):
    batches = make_batches(tmp_path, flip=True)
    before = batches.pixels[0].clone()
    list(islice(batches.stream(), 7))
    assert torch.equal(batches.pixels[0], before)


@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize("in_memory", [0, 2**30])
def test_ranks_share_the_batch_of_a_single_process(tmp_path, world_size, in_memory):
    single = list(islice(make_batches(tmp_path, flip=True).stream(), 5))
    for rank in range(world_size):
        batches = make_batches(
            tmp_path, flip=True, rank=rank, world_size=world_size, in_memory=in_memory
        )
        for (images, captions), share in zip(single, islice(batches.stream(), 5), strict=True):
            assert torch.equal(share[0], images[rank::world_size])
            assert share[1] == captions[rank::world_size]


def test_a_batch_that_does_not_divide_among_the_ranks_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"batch of 4 .* 3 "):
        make_batches(tmp_path, world_size=3)


def test_every_caption_of_an_image_is_used(tmp_path):
    pair = Pair(picture(tmp_path / "a.png"), ("one", "two", "three"))
    batches = ImageBatches([pair], TRANSFORM, 1, seed=0)
    drawn = [captions[0] for _, captions in islice(batches.stream(), 60)]
    assert all(10 < drawn.count(caption) < 32 for caption in pair.captions)


def test_random_crops_differ_between_epochs_and_repeat_with_the_seed(tmp_path):
    pair = Pair(picture(tmp_path / "a.png", size=(24, 8)), ("a",))

    def crops() -> list[torch.Tensor]:
        batches = ImageBatches([pair], ImageTransform(8, crop="random"), 1, seed=0)
        return [images for images, _ in islice(batches.stream(), 6)]

    assert all(torch.equal(one, other) for one, other in zip(crops(), crops(), strict=True))
    assert len({crop.numpy().tobytes() for crop in crops()}) > 3


def test_all_damaged_images_are_named_at_once(tmp_path):
    paths = [truncated(tmp_path / f"{k}.jpg") for k in range(3)]
    with pytest.raises(UserError, match=r"(?s)3 .*0\.jpg: .*2\.jpg: "):
        read_pixels(paths, TRANSFORM)
