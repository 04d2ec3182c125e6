"""Every kind of image file, read into the pixels that are in it."""

import io
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dataset.images.transform import (
    ImageTransform,
    UnusableImage,
    inspect_image,
    load_image,
    to_model,
    to_uint8,
)

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def saved(folder: Path, image: Image.Image, name: str = "image.png", **options) -> Path:
    image.save(folder / name, **options)
    return folder / name


def read(path: Path, channels: int = 3, **options) -> np.ndarray:
    """The pixels of an 8x8 file, unresized."""
    return ImageTransform(8, channels, crop="none", **options)(path)


def halves(left: tuple[int, ...], right: tuple[int, ...], mode: str) -> Image.Image:
    image = Image.new(mode, (8, 8), left)
    image.paste(right, (4, 0, 8, 8))
    return image


def test_rgb_is_read_as_it_is(tmp_path):
    values = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    assert (read(saved(tmp_path, Image.fromarray(values))) == values.transpose(2, 0, 1)).all()


def test_gray_becomes_three_equal_channels_or_stays_one(tmp_path):
    values = np.arange(64, dtype=np.uint8).reshape(8, 8)
    path = saved(tmp_path, Image.fromarray(values))
    assert (read(path) == values).all()
    assert (read(path, channels=1) == values[None]).all()


def test_black_and_white_uses_the_whole_range(tmp_path):
    path = saved(tmp_path, halves((0,), (255,), "L").convert("1"))
    assert set(np.unique(read(path))) == {0, 255}


@pytest.mark.parametrize("name", ["image.png", "image.tif"])
def test_16_bits_are_scaled_and_not_clipped(tmp_path, name):
    values = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    path = saved(tmp_path, Image.fromarray(values), name)
    assert (read(path, channels=1)[0] == np.round(values / 257)).all()


def test_alpha_is_composited_on_the_stated_color(tmp_path):
    path = saved(tmp_path, halves((*RED, 128), (*RED, 0), "RGBA"))
    pixels = read(path, background=BLUE)
    assert tuple(pixels[:, 0, 7]) == BLUE
    assert np.allclose(pixels[:, 0, 0], [128, 0, 127], atol=1)
    assert tuple(read(path)[:, 0, 7]) == WHITE


def test_gray_with_alpha_is_composited(tmp_path):
    path = saved(tmp_path, halves((10, 255), (10, 0), "LA"))
    gray = read(path, channels=1, background=(200, 200, 200))
    assert gray[0, 0, 0] == 10
    assert gray[0, 0, 7] == 200


@pytest.mark.parametrize("mode", ["P", "RGB", "L"])
def test_a_transparent_color_is_composited(tmp_path, mode):
    image = halves((0,) * 3, (99,) * 3, "RGB").convert("L").convert(mode)
    transparent = image.getpixel((7, 0))
    path = saved(tmp_path, image, transparency=transparent)
    pixels = read(path, background=GREEN)
    assert tuple(pixels[:, 0, 0]) == (0, 0, 0)
    assert tuple(pixels[:, 0, 7]) == GREEN


def test_palette_without_transparency(tmp_path):
    image = halves(RED, BLUE, "RGB").quantize(2)
    pixels = read(saved(tmp_path, image))
    assert tuple(pixels[:, 0, 0]) == RED
    assert tuple(pixels[:, 0, 7]) == BLUE


def test_cmyk_jpeg(tmp_path):
    path = saved(tmp_path, halves(RED, WHITE, "RGB").convert("CMYK"), "image.jpg", quality=100)
    pixels = read(path).astype(int)
    assert np.abs(pixels[:, 0, 0] - RED).max() < 8
    assert np.abs(pixels[:, 0, 7] - WHITE).max() < 8


def test_four_channels_keep_alpha(tmp_path):
    path = saved(tmp_path, halves((*RED, 128), (*BLUE, 255), "RGBA"))
    assert tuple(read(path, channels=4)[:, 0, 0]) == (*RED, 128)
    opaque = saved(tmp_path, halves(RED, BLUE, "RGB"), "opaque.png")
    assert tuple(read(opaque, channels=4)[:, 0, 0]) == (*RED, 255)


def test_hidden_colors_do_not_bleed_into_the_edge(tmp_path):
    """Transparent pixels are green underneath; resized, the edge must not turn green."""
    path = saved(tmp_path, halves((*RED, 255), (*GREEN, 0), "RGBA"))
    composited = ImageTransform(3)(path)
    assert (composited[1] == composited[2]).all()  # red on white: green follows blue


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_turns_before_anything_is_cropped(tmp_path, orientation):
    """A tall picture, green and red above blue, stored as each EXIF orientation stores it."""
    upright = halves(GREEN, RED, "RGB").resize((8, 16), Image.Resampling.NEAREST)
    upright.paste(BLUE, (0, 8, 8, 16))
    stored = {1: [], 2: [0], 3: [3], 4: [1], 5: [5], 6: [2], 7: [6], 8: [4]}[
        orientation
    ]  # fmt: skip  Pillow's transpositions that undo what EXIF asks for
    for operation in stored:
        upright = upright.transpose(Image.Transpose(operation))
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(tmp_path, upright, exif=exif)
    assert inspect_image(path) == ((8, 16), "RGB")
    pixels = ImageTransform(8)(path)
    assert [tuple(pixels[:, y, x]) for y, x in ((0, 0), (0, 7), (7, 4))] == [GREEN, RED, BLUE]


def test_a_truncated_jpeg_is_refused(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    path = saved(tmp_path, Image.fromarray(noise), "image.jpg")
    path.write_bytes(path.read_bytes()[:-400])
    for attempt in (ImageTransform(8), inspect_image):
        with pytest.raises(UnusableImage, match="truncated"):
            attempt(path)


def test_a_png_with_a_damaged_header_is_refused(tmp_path):
    path = saved(tmp_path, halves(RED, BLUE, "RGB"))
    content = bytearray(path.read_bytes())
    content[8:12] = (5).to_bytes(4, "big")  # length of the first chunk, which needs 13 bytes
    path.write_bytes(content)
    with pytest.raises(UnusableImage, match="cannot be read"):
        load_image(path)


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>"])
def test_what_is_no_image_is_refused(tmp_path, content):
    (tmp_path / "image.png").write_bytes(content)
    with pytest.raises(UnusableImage, match=r"is empty|is not an image"):
        load_image(tmp_path / "image.png")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UnusableImage, match=r"gone\.png"):
        load_image(tmp_path / "gone.png")


def test_an_unusable_image_survives_pickling():
    error = pickle.loads(pickle.dumps(UnusableImage(Path("a.png"), "is empty")))
    assert str(error) == "a.png: is empty"


def test_shrinking_is_antialiased(tmp_path):
    """One-pixel stripes become gray; sampling without a filter would give black or white."""
    stripes = np.zeros((64, 64), np.uint8)
    stripes[:, ::2] = 255
    pixels = ImageTransform(8, channels=1)(saved(tmp_path, Image.fromarray(stripes)))
    assert np.abs(pixels.astype(int) - 128).max() <= 12


def test_shrinking_keeps_the_center_in_place(tmp_path):
    ramp = np.tile(np.linspace(0, 255, 64).astype(np.uint8), (64, 1))
    pixels = ImageTransform(8, channels=1)(saved(tmp_path, Image.fromarray(ramp))).astype(int)
    assert np.abs(pixels[0] + pixels[0, :, ::-1] - 255).max() <= 1


def test_large_jpegs_decoded_small_look_the_same(tmp_path):
    waves = np.sin(np.linspace(0, 20, 512))[:, None] * np.cos(np.linspace(0, 15, 512))
    image = Image.fromarray((127 + 120 * waves).astype(np.uint8)).convert("RGB")
    path = saved(tmp_path, image, "image.jpg", quality=95)
    fast = ImageTransform(32)(path).astype(int)
    slow = np.asarray(image.resize((32, 32), Image.Resampling.LANCZOS)).transpose(2, 0, 1)
    assert load_image(path, shrink_to=64).size == (64, 64)
    assert np.abs(fast - slow).mean() < 1


def thirds(size: tuple[int, int]) -> Image.Image:
    """Red, green and blue from left to right."""
    image = Image.new("RGB", size, GREEN)
    image.paste(RED, (0, 0, size[0] // 3, size[1]))
    image.paste(BLUE, (2 * size[0] // 3, 0, *size))
    return image


def test_center_crop_takes_the_middle(tmp_path):
    pixels = ImageTransform(10)(saved(tmp_path, thirds((30, 10))))
    assert (pixels == np.array(GREEN)[:, None, None]).all()


def test_letterbox_keeps_everything_between_bars(tmp_path):
    path = saved(tmp_path, thirds((30, 10)))
    pixels = ImageTransform(30, crop="letterbox", background=(9, 8, 7))(path)
    assert tuple(pixels[:, 0, 15]) == (9, 8, 7) == tuple(pixels[:, 29, 15])
    assert [tuple(pixels[:, 15, x]) for x in (0, 15, 29)] == [RED, GREEN, BLUE]
    assert ImageTransform(30, 4, crop="letterbox")(path)[3, :, 15].tolist().count(255) == 10


def test_random_crop_follows_its_generator(tmp_path):
    path = saved(tmp_path, thirds((30, 10)))
    transform = ImageTransform(10, crop="random")
    crops = [transform(path, torch.Generator().manual_seed(seed)) for seed in range(8)]
    again = transform(path, torch.Generator().manual_seed(0))
    assert (crops[0] == again).all()
    assert len({crop.tobytes() for crop in crops}) > 1
    with pytest.raises(ValueError, match="read once and kept"):
        transform(path)


def test_no_crop_refuses_other_sizes(tmp_path):
    path = saved(tmp_path, thirds((30, 10)))
    with pytest.raises(UnusableImage, match=r"is 30x10 pixels.*must be 8x8"):
        read(path)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"size": 0}, "at least 1"),
        ({"size": 8, "channels": 0}, "0 channels"),
        ({"size": 8, "background": (0, 0, 300)}, "background"),
    ],
)
def test_a_wrong_transform_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        ImageTransform(**wrong)


def test_a_description_tells_transforms_apart():
    described = [
        ImageTransform(8).describe(),
        ImageTransform(16).describe(),
        ImageTransform(8, 1).describe(),
        ImageTransform(8, crop="letterbox").describe(),
        ImageTransform(8, background=BLUE).describe(),
    ]
    assert all(described.count(one) == 1 for one in described)


def test_pixels_survive_the_way_to_the_model_and_back():
    pixels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    images = to_model(pixels)
    assert images.min() == -1
    assert images.max() == 1
    assert torch.equal(to_uint8(images), pixels)


def test_pixels_are_rounded_and_clamped():
    levels = torch.tensor([-0.4, 0.4, 0.6, 254.6, 300.0]).view(1, 1, 1, 5)
    assert to_uint8(levels / 127.5 - 1).flatten().tolist() == [0, 0, 1, 255, 255]


def test_webp_and_gif_are_read(tmp_path):
    for name in ("image.webp", "image.gif", "image.bmp"):
        options = {"lossless": True} if name.endswith("webp") else {}
        assert tuple(read(saved(tmp_path, halves(RED, BLUE, "RGB"), name, **options))[:, 0, 0]) == (
            RED
        )


def test_a_wrong_extension_is_no_matter(tmp_path):
    content = io.BytesIO()
    halves(RED, BLUE, "RGB").save(content, "PNG")
    (tmp_path / "image.jpg").write_bytes(content.getvalue())
    assert tuple(read(tmp_path / "image.jpg")[:, 0, 0]) == RED
