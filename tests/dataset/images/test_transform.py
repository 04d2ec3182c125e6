"""Image files of every 8-bit kind, read into exactly the pixels that they hold; crops and sizes."""

import io
import pickle
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dataset.images.transform import (
    CENTER,
    ImageTransform,
    crop_box,
    inspect_image,
    letterbox_size,
    load_image,
    normalize_pixels,
    to_uint8,
)
from dataset.source import UnusableImage
from foundation.errors import UserError

CROPS = st.sampled_from(["center", "letterbox"])
CHANNELS = st.sampled_from([1, 3, 4])
RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def save(folder: Path, image: Image.Image, name: str = "image.png", **options) -> Path:
    """Save an image and return its path."""
    image.save(folder / name, **options)
    return folder / name


def read(path: Path, channels: int = 3, **options) -> np.ndarray:
    """Read the pixels of an 8x8 file without resizing."""
    return ImageTransform(8, channels, crop="none", **options)(path)


def halves(left: tuple[int, ...], right: tuple[int, ...], mode: str) -> Image.Image:
    """Draw an image whose left and right halves have different colors."""
    image = Image.new(mode, (8, 8), left)
    image.paste(right, (4, 0, 8, 8))
    return image


def test_rgb_is_not_changed(tmp_path):
    values = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    assert (read(save(tmp_path, Image.fromarray(values))) == values.transpose(2, 0, 1)).all()


def test_gray_becomes_three_equal_channels_or_stays_one(tmp_path):
    values = np.arange(64, dtype=np.uint8).reshape(8, 8)
    path = save(tmp_path, Image.fromarray(values))
    assert (read(path) == values).all()
    assert (read(path, channels=1) == values[None]).all()


def test_black_and_white_becomes_0_and_255(tmp_path):
    path = save(tmp_path, halves((0,), (255,), "L").convert("1"))
    assert set(np.unique(read(path))) == {0, 255}


@pytest.mark.parametrize("name", ["image.png", "image.tif"])
def test_16_bits_are_scaled_and_not_clipped(tmp_path, name):
    values = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    path = save(tmp_path, Image.fromarray(values), name)
    assert (read(path, channels=1)[0] == np.round(values / 257)).all()


def test_alpha_is_composited_onto_the_background(tmp_path):
    path = save(tmp_path, halves((*RED, 128), (*RED, 0), "RGBA"))
    pixels = read(path, background=BLUE)
    assert tuple(pixels[:, 0, 7]) == BLUE
    assert np.allclose(pixels[:, 0, 0], [128, 0, 127], atol=1)
    assert tuple(read(path)[:, 0, 7]) == WHITE


def test_gray_with_alpha_is_composited(tmp_path):
    path = save(tmp_path, halves((10, 255), (10, 0), "LA"))
    gray = read(path, channels=1, background=(200, 200, 200))
    assert gray[0, 0, 0] == 10
    assert gray[0, 0, 7] == 200


@pytest.mark.parametrize("mode", ["P", "RGB", "L"])
def test_a_transparent_color_is_composited(tmp_path, mode):
    image = halves((0,) * 3, (99,) * 3, "RGB").convert("L").convert(mode)
    transparent = image.getpixel((7, 0))
    path = save(tmp_path, image, transparency=transparent)
    pixels = read(path, background=GREEN)
    assert tuple(pixels[:, 0, 0]) == (0, 0, 0)
    assert tuple(pixels[:, 0, 7]) == GREEN


def test_palette_colors_are_read(tmp_path):
    image = halves(RED, BLUE, "RGB").quantize(2)
    pixels = read(save(tmp_path, image))
    assert tuple(pixels[:, 0, 0]) == RED
    assert tuple(pixels[:, 0, 7]) == BLUE


def test_cmyk_jpeg_is_converted_to_rgb(tmp_path):
    path = save(tmp_path, halves(RED, WHITE, "RGB").convert("CMYK"), "image.jpg", quality=100)
    pixels = read(path).astype(int)
    assert np.abs(pixels[:, 0, 0] - RED).max() < 8
    assert np.abs(pixels[:, 0, 7] - WHITE).max() < 8


def test_rgba_keeps_alpha(tmp_path):
    path = save(tmp_path, halves((*RED, 128), (*BLUE, 255), "RGBA"))
    assert tuple(read(path, channels=4)[:, 0, 0]) == (*RED, 128)
    opaque = save(tmp_path, halves(RED, BLUE, "RGB"), "opaque.png")
    assert tuple(read(opaque, channels=4)[:, 0, 0]) == (*RED, 255)


def test_hidden_colors_do_not_bleed_into_the_edge(tmp_path):
    """Transparent pixels have a hidden green; after resizing the edge must not be green."""
    path = save(tmp_path, halves((*RED, 255), (*GREEN, 0), "RGBA"))
    pixels = ImageTransform(3)(path)
    assert (pixels[1] == pixels[2]).all()  # red on white: green follows blue


@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_turned_upright_before_cropping(tmp_path, orientation):
    """A tall image, green and red above blue, is stored in each of the EXIF orientations."""
    upright = halves(GREEN, RED, "RGB").resize((8, 16), Image.Resampling.NEAREST)
    upright.paste(BLUE, (0, 8, 8, 16))
    stored = {1: [], 2: [0], 3: [3], 4: [1], 5: [5], 6: [2], 7: [6], 8: [4]}[
        orientation
    ]  # fmt: skip  Pillow's transpositions that undo what EXIF asks for
    for operation in stored:
        upright = upright.transpose(Image.Transpose(operation))
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(tmp_path, upright, exif=exif)
    assert inspect_image(path) == ((8, 16), "RGB")
    pixels = ImageTransform(8)(path)
    assert [tuple(pixels[:, y, x]) for y, x in ((0, 0), (0, 7), (7, 4))] == [GREEN, RED, BLUE]


def test_a_truncated_jpeg_is_refused(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    path = save(tmp_path, Image.fromarray(noise), "image.jpg")
    path.write_bytes(path.read_bytes()[:-400])
    for read_file in (ImageTransform(8), inspect_image):
        with pytest.raises(UnusableImage):
            read_file(path)


def test_a_png_with_a_damaged_header_is_refused(tmp_path):
    path = save(tmp_path, halves(RED, BLUE, "RGB"))
    content = bytearray(path.read_bytes())
    content[8:12] = (5).to_bytes(4, "big")  # length of the first chunk, which needs 13 bytes
    path.write_bytes(content)
    with pytest.raises(UnusableImage):
        load_image(path)


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>"])
def test_a_file_that_is_not_an_image_is_refused(tmp_path, content):
    (tmp_path / "image.png").write_bytes(content)
    with pytest.raises(UnusableImage):
        load_image(tmp_path / "image.png")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UnusableImage, match=r"gone\.png"):
        load_image(tmp_path / "gone.png")


def test_unusable_image_errors_can_be_pickled():
    error = pickle.loads(pickle.dumps(UnusableImage(Path("a.png"), "is empty")))
    assert str(error) == "a.png: is empty"


def test_shrinking_is_antialiased(tmp_path):
    """One-pixel stripes become gray; without a filter they would become black or white."""
    stripes = np.zeros((64, 64), np.uint8)
    stripes[:, ::2] = 255
    pixels = ImageTransform(8, channels=1)(save(tmp_path, Image.fromarray(stripes)))
    assert np.abs(pixels.astype(int) - 128).max() <= 12


def test_shrinking_keeps_the_center_in_place(tmp_path):
    ramp = np.tile(np.linspace(0, 255, 64).astype(np.uint8), (64, 1))
    pixels = ImageTransform(8, channels=1)(save(tmp_path, Image.fromarray(ramp))).astype(int)
    assert np.abs(pixels[0] + pixels[0, :, ::-1] - 255).max() <= 1


def test_jpegs_decoded_at_reduced_size_look_the_same(tmp_path):
    waves = np.sin(np.linspace(0, 20, 512))[:, None] * np.cos(np.linspace(0, 15, 512))
    image = Image.fromarray((127 + 120 * waves).astype(np.uint8)).convert("RGB")
    path = save(tmp_path, image, "image.jpg", quality=95)
    fast = ImageTransform(32)(path).astype(int)
    slow = np.asarray(image.resize((32, 32), Image.Resampling.LANCZOS)).transpose(2, 0, 1)
    assert load_image(path, shrink_to=64).size == (64, 64)
    assert np.abs(fast - slow).mean() < 1


def thirds(size: tuple[int, int]) -> Image.Image:
    """Draw red, green and blue from left to right."""
    image = Image.new("RGB", size, GREEN)
    image.paste(RED, (0, 0, size[0] // 3, size[1]))
    image.paste(BLUE, (2 * size[0] // 3, 0, *size))
    return image


def test_center_crop_takes_the_middle(tmp_path):
    pixels = ImageTransform(10)(save(tmp_path, thirds((30, 10))))
    assert (pixels == np.array(GREEN)[:, None, None]).all()


def test_letterbox_keeps_everything_between_bars(tmp_path):
    path = save(tmp_path, thirds((30, 10)))
    pixels = ImageTransform(30, crop="letterbox", background=(9, 8, 7))(path)
    assert tuple(pixels[:, 0, 15]) == (9, 8, 7) == tuple(pixels[:, 29, 15])
    assert [tuple(pixels[:, 15, x]) for x in (0, 15, 29)] == [RED, GREEN, BLUE]
    assert ImageTransform(30, 4, crop="letterbox")(path)[3, :, 15].tolist().count(255) == 10


def test_random_crop_follows_its_generator(tmp_path):
    path = save(tmp_path, thirds((30, 10)))
    transform = ImageTransform(10, crop="random")
    crops = [transform(path, torch.Generator().manual_seed(seed)) for seed in range(8)]
    again = transform(path, torch.Generator().manual_seed(0))
    assert (crops[0] == again).all()
    assert len({crop.tobytes() for crop in crops}) > 1
    with pytest.raises(UserError, match="center or letterbox"):
        transform(path)


SIDE = st.integers(1, 5000)
SIZES = st.tuples(SIDE, SIDE)
POSITIONS = st.tuples(st.floats(0, 1), st.floats(0, 1))


@given(SIZES, SIZES, POSITIONS)
def test_the_crop_box_is_the_largest_with_its_aspect_ratio(size, shape, position):
    left, top, right, bottom = crop_box(size, shape, position)
    width, height = right - left, bottom - top
    tolerance = 1e-9 * max(size)
    assert left >= 0 and top >= 0
    assert right <= size[0] + tolerance and bottom <= size[1] + tolerance
    assert width * shape[1] == pytest.approx(height * shape[0])
    assert width == pytest.approx(size[0]) or height == pytest.approx(size[1])


@given(SIZES, SIZES)
def test_the_centered_crop_box_has_equal_margins(size, shape):
    left, top, right, bottom = crop_box(size, shape, CENTER)
    assert left == pytest.approx(size[0] - right, abs=1e-6)
    assert top == pytest.approx(size[1] - bottom, abs=1e-6)


@given(SIZES, SIZES)
def test_a_letterboxed_image_fills_one_side_and_keeps_its_proportions(size, shape):
    width, height = letterbox_size(size, shape)
    assert 1 <= width <= shape[0] and 1 <= height <= shape[1]
    assert width == shape[0] or height == shape[1]
    scale = min(shape[0] / size[0], shape[1] / size[1])
    assert abs(width - size[0] * scale) <= 1 and abs(height - size[1] * scale) <= 1


@given(st.tuples(st.integers(1, 40), st.integers(1, 40)), st.integers(1, 20), CROPS, CHANNELS)
def test_every_image_gets_the_requested_shape(size, side, crop, channels):
    with tempfile.TemporaryDirectory() as folder:
        path = save(Path(folder), Image.new("RGB", size, RED))
        pixels = ImageTransform(side, channels, crop)(path)
    assert pixels.shape == (channels, side, side)
    assert pixels.dtype == np.uint8


def test_no_crop_refuses_other_sizes(tmp_path):
    path = save(tmp_path, thirds((30, 10)))
    with pytest.raises(UnusableImage, match=r"30x10 .* 8x8"):
        read(path)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"size": 0}, "0 pixels"),
        ({"size": 8, "channels": 0}, "0 channels"),
        ({"size": 8, "background": (0, 0, 300)}, "300"),
    ],
)
def test_a_wrong_transform_is_refused(wrong, message):
    with pytest.raises(UserError, match=message):
        ImageTransform(**wrong)


def test_different_transforms_have_different_descriptions():
    described = [
        ImageTransform(8).describe(),
        ImageTransform(16).describe(),
        ImageTransform(8, 1).describe(),
        ImageTransform(8, crop="letterbox").describe(),
        ImageTransform(8, background=BLUE).describe(),
    ]
    assert all(described.count(one) == 1 for one in described)


def test_8_bit_pixels_survive_normalization_and_its_reverse():
    pixels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    images = normalize_pixels(pixels)
    assert images.min() == -1
    assert images.max() == 1
    assert torch.equal(to_uint8(images), pixels)


def test_images_are_rounded_and_clamped_to_8_bits():
    levels = torch.tensor([-0.4, 0.4, 0.6, 254.6, 300.0]).view(1, 1, 1, 5)
    assert to_uint8(levels / 127.5 - 1).flatten().tolist() == [0, 0, 1, 255, 255]


@pytest.mark.parametrize(
    ("name", "options"),
    [("image.webp", {"lossless": True}), ("image.gif", {}), ("image.bmp", {})],
)
def test_other_formats_are_read(tmp_path, name, options):
    path = save(tmp_path, halves(RED, BLUE, "RGB"), name, **options)
    assert tuple(read(path)[:, 0, 0]) == RED


def test_the_extension_does_not_have_to_match_the_content(tmp_path):
    content = io.BytesIO()
    halves(RED, BLUE, "RGB").save(content, "PNG")
    (tmp_path / "image.jpg").write_bytes(content.getvalue())
    assert tuple(read(tmp_path / "image.jpg")[:, 0, 0]) == RED
