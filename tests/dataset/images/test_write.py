"""Images are written with the numbers that the training files have, and with their texts."""

import io
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dataset.images.decode import read_raster
from dataset.images.pixel_format import PixelFormat
from dataset.images.write import choose_extension, encode_png, write_image
from dataset.source import MissingLibrary
from foundation.errors import NotFiniteError, UserError
from tests.helpers.data.deep_images import SIDE, SIXTEEN_BIT, numbers


@pytest.mark.parametrize(
    ("dtype", "channels", "extension"),
    [
        ("uint16", 1, ".png"),
        ("uint16", 3, ".png"),
        ("uint16", 4, ".png"),
        ("uint8", 3, ".png"),
        ("uint16", 3, ".tif"),
        ("uint16", 1, ".tif"),
        ("int16", 5, ".tif"),
        ("uint16", 5, ".npy"),
        ("float32", 2, ".npy"),
        ("int32", 3, ".npy"),
    ],
)
@pytest.mark.parametrize("layout", ["hwc", "chw"])
def test_images_are_written_with_the_numbers_of_the_files(
    tmp_path, dtype, channels, extension, layout
):
    low = 0 if dtype[0] == "u" else -100
    pixels = PixelFormat(dtype, low, 250, layout)
    values = numbers(SIDE, SIDE, channels, dtype=dtype, high=250)
    images = torch.from_numpy(pixels.normalize(values, Path("a")).transpose(2, 0, 1))
    path = write_image(images, tmp_path / f"a{extension}", pixels, {"parameters": "a red apple, ä"})
    raster = read_raster(path)
    if raster is None:
        with Image.open(path) as image:
            read = np.asarray(image)
            assert image.text == {"parameters": "a red apple, ä"}
    else:
        read = raster.interleaved(channels, layout)
    assert read.dtype == dtype
    tolerance = 1e-4 if dtype == "float32" else 0
    assert np.abs(read - values.astype(float)).max() <= tolerance
    with pytest.raises(FileExistsError):
        write_image(images, path, pixels)


def test_a_16_bit_png_keeps_its_texts(tmp_path):
    texts = {"latentsmith": '{"a": "ü"}'}
    path = write_image(torch.zeros(3, 4, 4), tmp_path / "a.png", SIXTEEN_BIT, texts)
    with Image.open(path) as image:
        assert image.text == texts


def test_values_beyond_the_range_are_clamped_on_writing(tmp_path):
    pixels = PixelFormat("uint16", 10, 1000)
    path = write_image(torch.tensor([[[-3.0, 3.0]]]), tmp_path / "a.png", pixels)
    assert read_raster(path).values.tolist() == [[10, 1000]]


def test_the_extension_follows_from_the_numbers():
    assert choose_extension(SIXTEEN_BIT, 3) == ".png"
    assert (
        choose_extension(SIXTEEN_BIT, 5)
        == choose_extension(PixelFormat("int16", 0, 9), 3)
        == ".npy"
    )
    with pytest.raises(UserError, match=r"5 channels of uint16.*\.npy or \.tif"):
        choose_extension(SIXTEEN_BIT, 5, ".png")
    with pytest.raises(UserError, match=r"\.jpg"):
        choose_extension(SIXTEEN_BIT, 3, ".jpg")


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_png_of_any_depth_and_channels_is_read_back(tmp_path, channels, dtype):
    pytest.importorskip("imagecodecs")
    values = numbers(SIDE, SIDE, channels, dtype=dtype, high=np.iinfo(dtype).max + 1)
    (tmp_path / "a.png").write_bytes(encode_png(values, {"name": "ä"}))
    raster = read_raster(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        image.load()
        assert image.text == {"name": "ä"}
        read = np.asarray(image) if raster is None else raster.values
    assert read.dtype == dtype
    assert (read.reshape(values.shape) == values).all()


NAMES = st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1, max_size=79)
TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\0"))


@given(st.dictionaries(NAMES.filter(lambda name: name == name.strip()), TEXTS, max_size=3))
def test_texts_of_a_16_bit_png_are_read_back(texts):
    pytest.importorskip("imagecodecs")
    content = encode_png(np.zeros((2, 3, 3), np.uint16), texts)
    with Image.open(io.BytesIO(content)) as image:
        image.load()
        assert image.text == texts


def test_a_missing_png_library_is_known_before_an_image_is_computed(monkeypatch):
    monkeypatch.setitem(sys.modules, "imagecodecs", None)
    assert choose_extension(SIXTEEN_BIT, 1) == ".png"
    with pytest.raises(MissingLibrary, match="imagecodecs"):
        choose_extension(SIXTEEN_BIT, 3)


def test_an_image_with_nan_is_not_written(tmp_path):
    with pytest.raises(NotFiniteError):
        write_image(torch.full((1, 2, 2), torch.nan), tmp_path / "a.png", SIXTEEN_BIT)
    assert not (tmp_path / "a.png").exists()
