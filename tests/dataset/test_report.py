"""The report on a data folder: what it counts, and which problems it names."""

from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dataset.folder import read_folder
from dataset.images.pixel_format import PixelFormat
from dataset.report import BINS, histogram, report, report_numbers, value_range_notes
from foundation.errors import UserError
from tests.helpers.data.deep_images import SIDE, npy, numbers, png
from tests.helpers.images import captioned, picture


def test_without_a_tokenizer_words_are_counted(tmp_path):
    assert "in words" in report(read_folder(captioned(tmp_path, 2)))


def test_the_report_mentions_equal_captions_and_pixels_that_cropping_removes(tmp_path):
    for k in range(2):
        picture(tmp_path / f"{k}.png", size=(16, 8))
        (tmp_path / f"{k}.txt").write_text("the same")
    text = report(read_folder(tmp_path))
    assert "all captions are the same" in text
    assert "50% of the pixels on average" in text and "0% with max_aspect 2" in text


def test_many_sizes_become_a_histogram(tmp_path):
    for k in range(20):
        picture(tmp_path / f"{k}.png", size=(10 + 5 * k, 10 + 5 * k))
        (tmp_path / f"{k}.txt").write_text("noise")
    text = report(read_folder(tmp_path))
    assert "Shorter side" in text
    assert "  0-19  2  " in text


@given(st.lists(st.integers(0, 10**9), min_size=1))
def test_a_histogram_counts_every_value_in_a_few_ranges(values):
    rows = histogram(Counter(values))
    assert sum(count for _, count in rows) == len(values)
    assert len(rows) <= BINS
    bounds = [[int(bound) for bound in label.split("-")] for label, _ in rows]
    assert bounds[0][0] <= min(values)
    assert bounds[-1][-1] >= max(values)
    for (*_, last), (first, *_) in pairwise(bounds):
        assert first == last + 1


def numbers_report(
    folder: Path, value_range: tuple[float, float] | None = None
) -> tuple[str, list[str]]:
    """Return the lines as one text, and the problems."""
    lines, problems = report_numbers(read_folder(folder, allow_missing_captions=True), value_range)
    return "\n".join(lines), problems


def test_files_of_different_depths_are_refused(tmp_path):
    png(tmp_path / "a.png", numbers(SIDE, SIDE, 3))
    for name in ("b.png", "c.png"):
        Image.new("RGB", (SIDE, SIDE)).save(tmp_path / name)
    folder = read_folder(tmp_path, allow_missing_captions=True)
    with pytest.raises(UserError, match=r"2 of uint8 .*b\.png.* 1 of uint16 .*a\.png"):
        folder.require_one_dtype()
    assert len(report_numbers(folder, None)[1]) == 1


def test_channels_type_and_range_are_reported(tmp_path):
    for k in range(3):
        values = numbers(5, SIDE, SIDE, dtype="float32", high=1000 + k)
        values[0, 0, 0] = 1000 + k
        npy(tmp_path / f"{k}.npy", values)
    text, problems = numbers_report(tmp_path)
    assert "3 files: 5 channels of float32" in text and "to 1002" in text
    assert len(problems) == 1 and "float32" in problems[0] and "value_range" in problems[0]
    text, problems = numbers_report(tmp_path, (0, 1000))
    assert "2 of 3 files exceed 0 to 1000" in text and not problems
    npy(tmp_path / "3.npy", values / 1000)
    _, problems = numbers_report(tmp_path, (0, 1000))
    assert len(problems) == 1 and "3.npy from" in problems[0]


def test_8_bit_files_are_read_again_only_if_a_range_is_given(tmp_path):
    Image.new("RGB", (SIDE, SIDE), (10, 90, 40)).save(tmp_path / "a.png")
    text, _ = numbers_report(tmp_path, (0, 60))
    assert "numbers from 10 to 90" in text and "1 of 1 files exceed 0 to 60" in text
    assert numbers_report(tmp_path) == ("", [])


def test_12_bit_numbers_in_16_bit_files_are_reported(tmp_path):
    path = png(tmp_path / "a.png", numbers(SIDE, SIDE, 3, high=4096))
    text, problems = numbers_report(tmp_path)
    assert "6.2% of 0 to 65535" in text and "value_range" in text and not problems
    (note,) = value_range_notes([path], PixelFormat("uint16", 0, 65535))
    assert "6.2% of 0 to 65535" in note
