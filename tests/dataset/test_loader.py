"""The order follows from seed and step; batches hold the right pixels with their captions."""

from itertools import islice, pairwise

import pytest
import torch

from dataset.folder import read_folder
from dataset.images.transform import ImageTransform
from dataset.loader import ImageBatches, read_pixels
from dataset.order import Order
from dataset.table import Pair
from tests.helpers.images import captioned, picture, truncated

TRANSFORM = ImageTransform(8)
FEW_CORES = "ignore:This DataLoader will create"  # of the machine, not of the code


def batches(root, count=7, **options) -> ImageBatches:
    pairs = read_folder(captioned(root, count)).pairs
    return ImageBatches(pairs, TRANSFORM, **{"batch_size": 4, "seed": 1, **options})


def equal(ours, theirs) -> bool:
    pairs = list(zip(ours, theirs, strict=True))
    return all(torch.equal(a, b) and c == d for (a, c), (b, d) in pairs)


def test_every_epoch_shows_every_image_once():
    order = Order(count=7, batch_size=4, seed=0)
    stream = torch.cat([order.indices(step) for step in range(7)])
    epochs = stream.view(4, 7)
    assert (epochs.sort(dim=1).values == torch.arange(7)).all()
    assert not any(torch.equal(one, other) for one, other in pairwise(epochs))


def test_the_order_is_a_function_of_seed_and_step():
    asked_in_order = [Order(7, 4, seed=3).indices(step) for step in range(20)]
    order = Order(7, 4, seed=3)
    for step in (19, 0, 7, 8, 7, 3):
        assert torch.equal(order.indices(step), asked_in_order[step])
    other = [Order(7, 4, seed=4).indices(step) for step in range(20)]
    assert not torch.equal(torch.cat(other), torch.cat(asked_in_order))


@pytest.mark.parametrize("count", [0, 3])
def test_a_set_smaller_than_the_batch_is_refused(count):
    with pytest.raises(ValueError, match=f"there are {count} images.*--batch-size"):
        Order(count, batch_size=4, seed=0)


def test_a_set_as_large_as_the_batch():
    assert Order(4, 4, seed=0).indices(5).sort().values.tolist() == [0, 1, 2, 3]


def test_captions_belong_to_their_images(tmp_path):
    made = batches(tmp_path)
    for images, captions in islice(made.stream(), 6):
        for image, caption in zip(images, captions, strict=True):
            k = int(caption.split()[-1])
            assert torch.equal(image, torch.from_numpy(TRANSFORM(tmp_path / f"{k:03d}.png")))


def test_a_resumed_stream_goes_on_where_it_was(tmp_path):
    made = batches(tmp_path, flip=True)
    unbroken = list(islice(made.stream(), 10))
    resumed = list(islice(batches(tmp_path, flip=True).stream(first_step=6), 4))
    assert equal(unbroken[6:], resumed)


@pytest.mark.filterwarnings(FEW_CORES)
def test_workers_give_what_memory_gives(tmp_path):
    held = batches(tmp_path, flip=True)
    decoded = batches(tmp_path, flip=True, in_memory=0, workers=2)
    inline = batches(tmp_path, flip=True, in_memory=0)
    assert held.pixels is not None
    assert decoded.pixels is None
    expected = list(islice(held.stream(3), 5))
    assert equal(expected, islice(decoded.stream(3), 5))
    assert equal(expected, islice(inline.stream(3), 5))


@pytest.mark.filterwarnings(FEW_CORES)
@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_breaks_meanwhile_is_named_in_one_line(tmp_path, workers):
    made = batches(tmp_path, in_memory=0, workers=workers)
    (tmp_path / "003.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"^[^\n]*003\.png: is empty[^\n]*$"):
        list(islice(made.stream(), 3))


def test_images_are_not_mirrored_unless_asked(tmp_path):
    upright = {image.numpy().tobytes() for image in batches(tmp_path).pixels[0]}

    def mirrored(flip: bool) -> list[bool]:
        stream = islice(batches(tmp_path, flip=flip).stream(), 7)
        return [image.numpy().tobytes() not in upright for images, _ in stream for image in images]

    assert not any(mirrored(False))
    assert 5 < sum(mirrored(True)) < 23
    assert mirrored(True) == mirrored(True)


def test_mirroring_leaves_the_held_pixels_alone(tmp_path):
    made = batches(tmp_path, flip=True)
    before = made.pixels[0].clone()
    list(islice(made.stream(), 7))
    assert torch.equal(made.pixels[0], before)


def test_ranks_share_out_the_batch_of_one_process(tmp_path):
    alone = list(islice(batches(tmp_path, flip=True).stream(), 5))
    shares = [
        list(islice(batches(tmp_path, flip=True, rank=rank, ranks=2).stream(), 5))
        for rank in (0, 1)
    ]
    for step, (images, captions) in enumerate(alone):
        for rank in (0, 1):
            share, share_captions = shares[rank][step]
            assert torch.equal(share, images[rank::2])
            assert share_captions == captions[rank::2]
    with pytest.raises(ValueError, match="does not divide among 3"):
        batches(tmp_path, ranks=3)


def test_of_several_captions_each_is_used(tmp_path):
    pair = Pair(picture(tmp_path / "a.png"), ("one", "two", "three"))
    made = ImageBatches([pair], TRANSFORM, 1, seed=0)
    drawn = [captions[0] for _, captions in islice(made.stream(), 60)]
    assert all(10 < drawn.count(caption) < 32 for caption in pair.captions)


def test_random_crops_are_new_every_epoch_and_the_same_again(tmp_path):
    pair = Pair(picture(tmp_path / "a.png", size=(24, 8)), ("a",))
    crops = [
        [images for images, _ in islice(made.stream(), 6)]
        for made in [
            ImageBatches([pair], ImageTransform(8, crop="random"), 1, seed=0) for _ in range(2)
        ]
    ]
    assert all(torch.equal(one, other) for one, other in zip(*crops, strict=True))
    assert len({crop.numpy().tobytes() for crop in crops[0]}) > 3


def test_all_broken_images_are_named_at_once(tmp_path):
    paths = [truncated(tmp_path / f"{k}.jpg") for k in range(3)]
    with pytest.raises(ValueError, match=r"(?s)3 images.*0\.jpg: .*2\.jpg: "):
        read_pixels(paths, TRANSFORM)
