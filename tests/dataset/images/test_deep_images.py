"""Files beyond 8-bit pictures are read at full depth."""

import io
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps, PngImagePlugin

from dataset.folder import read_folder
from dataset.images.decode import read_raster
from dataset.images.pixel_format import EIGHT_BIT, PixelFormat, choose_format, recorded_format
from dataset.images.texts import read_texts
from dataset.images.transform import (
    ImageTransform,
    inspect_image,
    load_image,
    normalize_pixels,
    parse_mode,
    to_pixels_like,
)
from dataset.images.write import HEADER_END, encode_png
from dataset.loader import ImageBatches, read_pixels
from dataset.source import MissingLibrary, UnusableImage
from dataset.table import Pair
from foundation.errors import UserError
from tests.helpers.data.deep_images import SIDE, SIXTEEN_BIT, npy, numbers, png, read, tiff


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_16_bit_png_keeps_every_bit(tmp_path, channels):
    values = numbers(SIDE, SIDE, channels)
    path = png(tmp_path / "a.png", values)
    assert inspect_image(path) == ((SIDE, SIDE), f"uint16x{channels}")
    assert (read(path, channels) == values).all()


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("channels", [1, 3, 5])
@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_16_bit_tiff_keeps_every_bit(tmp_path, channels, planar, order):
    values = numbers(SIDE, SIDE, channels)
    stored = values.transpose(2, 0, 1) if planar == "separate" else values
    options = {"photometric": "rgb" if channels == 3 else "minisblack", "byteorder": order}
    if channels > 1:
        options["planarconfig"] = planar
    path = tiff(tmp_path / "a.tif", stored.squeeze(), compression="zlib", **options)
    assert inspect_image(path) == ((SIDE, SIDE), f"uint16x{channels}")
    assert (read(path, channels) == values).all()


def test_lzw_compressed_tiff_is_read(tmp_path):
    values = numbers(SIDE, SIDE, 3)
    path = tiff(tmp_path / "a.tif", values, photometric="rgb", compression="lzw")
    assert (read(path, 3) == values).all()


def test_float_tiff_is_read(tmp_path):
    values = numbers(SIDE, SIDE, dtype="float32", high=2.5)
    path = tiff(tmp_path / "a.tif", values)
    again = read(path, 1, PixelFormat("float32", 0, 2.5))
    assert np.abs(again[..., 0] - values).max() < 1e-6


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "int32", "float32", "float64"])
@pytest.mark.parametrize("first", [True, False])
def test_arrays_of_any_type_and_layout_are_read(tmp_path, dtype, first):
    values = numbers(SIDE, SIDE, 5, dtype=dtype, high=200)
    path = npy(tmp_path / "a.npy", values.transpose(2, 0, 1) if first else values)
    assert inspect_image(path) == ((SIDE, SIDE), f"{dtype}x5")
    again = read(path, 5, PixelFormat(dtype, -10 if dtype[0] != "u" else 0, 210))
    assert np.abs(again - values).max() < (1e-4 if dtype[0] == "f" else 1e-9)


def test_8_bit_arrays_stay_uint8(tmp_path):
    values = numbers(SIDE, SIDE, 6, dtype="uint8", high=256)
    pixels = ImageTransform(SIDE, 6, crop="none")(npy(tmp_path / "a.npy", values))
    assert pixels.dtype == np.uint8
    assert (pixels == values.transpose(2, 0, 1)).all()


def test_an_ambiguous_layout_must_be_stated(tmp_path):
    values = numbers(SIDE, SIDE, SIDE)
    path = npy(tmp_path / "a.npy", values)
    with pytest.raises(UnusableImage, match=r"\(8, 8, 8\).* 8 channels.* hwc or chw"):
        read(path, SIDE)
    assert (read(path, SIDE, PixelFormat("uint16", 0, 65535, "hwc")) == values).all()
    first = read(path, SIDE, PixelFormat("uint16", 0, 65535, "chw"))
    assert (first == values.transpose(1, 2, 0)).all()
    with pytest.raises(UnusableImage, match=r"\(8, 8, 8\).* 3 channels"):
        read(path, 3)


def test_only_numbers_outside_the_range_are_clipped(tmp_path):
    values = np.array([[-2000, -1000], [0, 3000]], np.int16)
    transform = ImageTransform(2, 1, "none", format=PixelFormat("int16", -1000, 1000))
    assert transform(npy(tmp_path / "a.npy", values)).tolist() == [[[-1, -1], [0, 1]]]


def test_nan_is_refused(tmp_path):
    values = np.full((SIDE, SIDE), np.nan, np.float32)
    with pytest.raises(UnusableImage, match="NaN"):
        read(npy(tmp_path / "a.npy", values), 1, PixelFormat("float32", 0, 1))


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (np.zeros((2, 2, 2, 2)), r"\(2, 2, 2, 2\)"),
        (np.zeros((2, 2), np.complex64), "complex64"),
        (np.zeros((0, 2)), r"\(0, 2\)"),
        (np.array([{}]), "pickle"),
    ],
)
def test_arrays_of_another_type_or_shape_are_refused(tmp_path, values, reason):
    with pytest.raises(UnusableImage, match=reason):
        inspect_image(npy(tmp_path / "a.npy", values))


def test_damaged_files_are_refused(tmp_path):
    paths = [
        png(tmp_path / "a.png", numbers(64, 64, 3)),
        tiff(tmp_path / "a.tif", numbers(64, 64, 3), photometric="rgb"),
        npy(tmp_path / "a.npy", numbers(64, 64)),
    ]
    for path in paths:
        path.write_bytes(path.read_bytes()[:-3000])
        with pytest.raises(UnusableImage):
            inspect_image(path)


def test_pages_are_channels_only_if_the_file_says_so(tmp_path):
    values = numbers(5, SIDE, SIDE)
    stack = tiff(tmp_path / "stack.tif", values, photometric="minisblack")
    with pytest.raises(UnusableImage, match="5 pages"):
        inspect_image(stack)
    channels = tiff(tmp_path / "c.tif", values, imagej=True, metadata={"axes": "CYX"})
    assert (read(channels, 5) == values.transpose(1, 2, 0)).all()


def test_a_missing_library_is_an_error_and_skips_no_file(tmp_path, monkeypatch):
    png(tmp_path / "a.png", numbers(SIDE, SIDE, 3))
    monkeypatch.setitem(sys.modules, "imagecodecs", None)
    with pytest.raises(MissingLibrary, match=r"pip install .*imagecodecs"):
        read_folder(tmp_path, allow_missing_captions=True)
    gray = png(tmp_path / "b.png", numbers(SIDE, SIDE, 1))
    assert parse_mode(inspect_image(gray)[1]) == ("uint16", 1)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_deep_pictures_are_turned_like_8_bit_ones(tmp_path, orientation):
    values = numbers(4, 6, 3)
    exif = Image.Exif()
    exif[0x0112] = orientation
    chunk = io.BytesIO()
    PngImagePlugin.putchunk(chunk, b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0"))
    content = png(tmp_path / "a.png", values).read_bytes()
    content = content[:HEADER_END] + chunk.getvalue() + content[HEADER_END:]
    (tmp_path / "a.png").write_bytes(content)
    shallow = Image.fromarray((values >> 8).astype(np.uint8))
    shallow.save(tmp_path / "b.png", exif=exif)
    deep = read_raster(tmp_path / "a.png").values
    with Image.open(tmp_path / "b.png") as image:
        assert (np.asarray(ImageOps.exif_transpose(image)) == deep >> 8).all()


def test_16_bit_color_is_scaled_for_a_model_of_8_bits(tmp_path):
    values = numbers(SIDE, SIDE, 3)
    path = png(tmp_path / "a.png", values)
    pixels = ImageTransform(SIDE, crop="none")(path)
    assert (pixels == np.round(values / 257).transpose(2, 0, 1)).all()
    with pytest.raises(UnusableImage, match=r"float32.*value_range"):
        ImageTransform(SIDE)(npy(tmp_path / "a.npy", values.astype(np.float32)))


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_16_bit_pictures_are_loaded_as_8_bit_ones(tmp_path, channels):
    values = numbers(SIDE, SIDE, channels)
    pytest.importorskip("imagecodecs")
    (tmp_path / "a.png").write_bytes(encode_png(values, {"title": "a scan"}))
    image = load_image(tmp_path / "a.png")
    assert image.mode == {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}[channels]
    assert (np.atleast_3d(np.asarray(image)) == np.round(values / 257)).all()
    assert read_texts(tmp_path / "a.png") == {"title": "a scan"}
    with pytest.raises(UnusableImage, match="float32"):
        load_image(npy(tmp_path / "a.npy", values.astype(np.float32)))


def test_channels_of_16_bit_pictures_are_converted_as_usual(tmp_path):
    """The 16-bit numbers are 257 times the 8-bit ones, and so must the results be (rounded)."""
    for channels in (1, 2, 3, 4):
        shallow = numbers(SIDE, SIDE, channels, dtype="uint8", high=256)
        Image.fromarray(shallow.squeeze()).save(tmp_path / "shallow.png")
        png(tmp_path / "deep.png", shallow.astype(np.uint16) * 257)
        for wanted in (1, 3, 4):
            expected = ImageTransform(SIDE, wanted, "none")(tmp_path / "shallow.png")
            deep = read(tmp_path / "deep.png", wanted).transpose(2, 0, 1) / 257
            assert np.abs(deep - expected).max() <= 1, (channels, wanted)


def test_channels_of_arrays_are_never_converted(tmp_path):
    path = npy(tmp_path / "a.npy", numbers(SIDE, SIDE, 4))
    with pytest.raises(UnusableImage, match=r"\(8, 8, 4\).* 3 channels"):
        read(path, 3)
    with pytest.raises(UnusableImage, match=r"1 channels.* 3 .*channels 1"):
        read(npy(tmp_path / "b.npy", numbers(SIDE, SIDE)), 3)


@pytest.mark.parametrize("crop", ["center", "letterbox"])
def test_16_bit_pictures_are_cropped_and_resized_like_8_bit_ones(tmp_path, crop):
    ramp = np.add.outer(np.linspace(0, 120, 24), np.linspace(0, 120, 40))
    shallow = np.repeat(ramp.astype(np.uint8)[..., None], 3, axis=2)
    Image.fromarray(shallow).save(tmp_path / "shallow.png")
    png(tmp_path / "deep.png", shallow.astype(np.uint16) * 257)
    expected = ImageTransform(SIDE, 3, crop, (9, 80, 200))(tmp_path / "shallow.png")
    deep = ImageTransform(SIDE, 3, crop, (9, 80, 200), SIXTEEN_BIT)(tmp_path / "deep.png")
    assert np.abs((deep + 1) * 127.5 - expected).max() < 1.01


def test_a_random_crop_is_the_same_for_all_channels(tmp_path):
    plane = numbers(SIDE, 3 * SIDE)
    path = npy(tmp_path / "a.npy", np.stack([plane] * 5))
    transform = ImageTransform(SIDE, 5, "random", format=SIXTEEN_BIT)
    images = transform(path, torch.Generator().manual_seed(1))
    assert (images == images[:1]).all()
    assert (images == transform(path, torch.Generator().manual_seed(1))).all()


def test_batches_have_the_precision_of_the_files(tmp_path):
    values = [numbers(SIDE, SIDE, 3, seed=k) for k in range(4)]
    paths = [png(tmp_path / f"{k}.png", value) for k, value in enumerate(values)]
    transform = ImageTransform(SIDE, 3, "none", format=SIXTEEN_BIT)
    pixels = read_pixels(paths, transform)
    assert pixels.dtype == torch.float32
    assert (SIXTEEN_BIT.restore(pixels).transpose(0, 2, 3, 1) == np.stack(values)).all()
    assert normalize_pixels(pixels) is pixels and torch.equal(
        to_pixels_like(pixels, pixels), pixels
    )
    pairs = [Pair(path, ("",)) for path in paths]
    size = 4 * 3 * SIDE**2 * 4  # bytes
    batches = [ImageBatches(pairs, transform, 2, 0, in_memory=n) for n in (size, size - 1)]
    assert batches[0].pixels is not None and batches[1].pixels is None
    assert torch.equal(batches[0][1][0], batches[1][1][0])


def test_only_unusual_formats_change_the_description_of_a_transform():
    assert "format" not in ImageTransform(8).describe()
    formats = [SIXTEEN_BIT, PixelFormat("uint16", 0, 4095), PixelFormat("uint8", 0, 100)]
    described = [ImageTransform(8, format=one).describe() for one in (EIGHT_BIT, *formats)]
    assert all(described.count(one) == 1 for one in described)


def test_recorded_formats_are_read_back():
    record = {"pixels": PixelFormat("int16", -1000, 3000, "chw").describe()}
    assert recorded_format(record) == PixelFormat("int16", -1000, 3000, "chw")
    assert recorded_format({}, {"autoencoder": record}).dtype == "int16"
    assert recorded_format({}, {"autoencoder": None}) == EIGHT_BIT


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("float32", None), "a.npy.*float32.*value_range"),
        (("uint16", (10, 0)), "10 0"),
        (("uint16", (0, 70000)), "0 70000 .*uint16.* 0 to 65535"),
        (("float32", (0, float("inf"))), "0 inf"),
        (("bool", (0, 1)), "bool"),
    ],
)
def test_wrong_ranges_are_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        choose_format(*arguments, "auto", Path("data/a.npy"))
