"""Folders of numbers: of one kind or refused, reported, and written back as they were."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import check
from dataset.folder import read_folder
from dataset.images import rasters
from dataset.images.numbers import the_type
from dataset.images.pixel_format import PixelFormat
from dataset.images.write import file_ending, to_file
from tests.helpers.deep_images import SIDE, SIXTEEN, npy, numbers, png


def test_depths_must_not_be_mixed(tmp_path):
    png(tmp_path / "a.png", numbers(SIDE, SIDE, 3))
    for name in ("b.png", "c.png"):
        Image.new("RGB", (SIDE, SIDE)).save(tmp_path / name)
    folder = read_folder(tmp_path, allow_missing_captions=True)
    with pytest.raises(
        ValueError, match=r"2 of uint8 \(such as .*b.png\), 1 of uint16 \(such as .*a.png\).*Conv"
    ):
        the_type(folder)


def checked(folder: Path, capsys, *flags: str) -> str:
    given = [str(folder), "--batch-size", "1", "--allow-missing-captions", *flags]
    try:
        check.main(given)
    except SystemExit as stop:
        assert stop.code == 1
    return capsys.readouterr().out


def test_check_reports_channels_depth_and_range(tmp_path, capsys):
    for k in range(3):
        values = numbers(5, SIDE, SIDE, dtype="float32", high=1000 + k)
        values[0, 0, 0] = 1000 + k
        npy(tmp_path / f"{k}.npy", values)
    text = checked(tmp_path, capsys)
    assert "3 files: 5 channels of float32" in text and "to 1002" in text
    assert "PROBLEM: numbers of type float32 have no range of their own" in text
    text = checked(tmp_path, capsys, "--value-range", "0", "1000")
    assert "2 of 3 files reach beyond 0 to 1000 and are clipped" in text and "No problems" in text
    npy(tmp_path / "3.npy", values / 1000)
    text = checked(tmp_path, capsys, "--value-range", "0", "1000")
    assert "PROBLEM: the files hold numbers of different ranges: " in text and "3.npy from" in text


def test_check_looks_at_the_numbers_of_8_bits_if_another_range_is_planned(tmp_path, capsys):
    Image.new("RGB", (SIDE, SIDE), (10, 90, 40)).save(tmp_path / "a.png")
    text = checked(tmp_path, capsys, "--value-range", "0", "60")
    assert "numbers from 10 to 90" in text and "1 of 1 files reach beyond 0 to 60" in text
    assert "Channels and numbers" not in checked(tmp_path, capsys)


def test_check_says_that_12_bits_leave_16_unused(tmp_path, capsys):
    png(tmp_path / "a.png", numbers(SIDE, SIDE, 3, high=4096))
    text = checked(tmp_path, capsys)
    assert "they use 6.2% of 0 to 65535" in text and "--value-range LOW HIGH" in text
    Image.new("RGB", (SIDE, SIDE)).save(tmp_path / "b.png")
    assert "PROBLEM: the files of" in checked(tmp_path, capsys)


# Writing


@pytest.mark.parametrize(
    ("dtype", "channels", "ending"),
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
def test_images_are_written_in_the_numbers_of_the_files(tmp_path, dtype, channels, ending, layout):
    low = 0 if dtype[0] == "u" else -100
    pixels = PixelFormat(dtype, low, 250, layout)
    values = numbers(SIDE, SIDE, channels, dtype=dtype, high=250)
    images = torch.from_numpy(pixels.normalize(values, Path("a")).transpose(2, 0, 1))
    path = to_file(images, tmp_path / f"a{ending}", pixels, {"parameters": "a red apple, ä"})
    raster = rasters.read_raster(path)
    if raster is None:
        with Image.open(path) as image:
            found = np.asarray(image)
            assert image.text == {"parameters": "a red apple, ä"}
    else:
        found = raster.interleaved(channels, layout)
    assert found.dtype == dtype
    tolerance = 1e-4 if dtype == "float32" else 0
    assert np.abs(found - values.astype(float)).max() <= tolerance
    with pytest.raises(FileExistsError):
        to_file(images, path, pixels)


def test_a_16_bit_png_keeps_its_texts(tmp_path):
    path = to_file(torch.zeros(3, 4, 4), tmp_path / "a.png", SIXTEEN, {"latentsmith": '{"a": "ü"}'})
    with Image.open(path) as image:
        assert image.text == {"latentsmith": '{"a": "ü"}'}


def test_values_beyond_the_range_are_clamped_on_writing(tmp_path):
    pixels = PixelFormat("uint16", 10, 1000)
    path = to_file(torch.tensor([[[-3.0, 3.0]]]), tmp_path / "a.png", pixels)
    assert rasters.read_raster(path).values.tolist() == [[10, 1000]]


def test_endings_hold_what_they_can():
    assert file_ending(SIXTEEN, 3) == ".png"
    assert file_ending(SIXTEEN, 5) == file_ending(PixelFormat("int16", 0, 9), 3) == ".npy"
    with pytest.raises(ValueError, match=r"5 channels of uint16. Use .npy or .tif"):
        file_ending(SIXTEEN, 5, ".png")
    with pytest.raises(ValueError, match=r"not as .jpg"):
        file_ending(SIXTEEN, 3, ".jpg")
