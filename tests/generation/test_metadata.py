"""Records come back from every file format as they were written."""

import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from foundation.errors import UserError
from generation.metadata import SUFFIXES, encode_image, read_record
from generation.video import ENCODERS

RECORD = {"prompt": "ein café 🎈", "seed": 2**63 - 1, "times": [999, 0.5], "hashes": {"a": "b"}}
LONG_RECORD = RECORD | {"stations": [{"prompt": "x" * 70000}]}
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
VALUES = st.none() | st.booleans() | st.integers(-(2**63), 2**63) | TEXT | st.lists(st.integers())


@pytest.mark.parametrize("file_format", ["png", "jpeg", "webp"])
def test_image_formats_hold_the_record(tmp_path, file_format):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8))
    file = tmp_path / "image"
    file.write_bytes(encode_image(image, RECORD, file_format))
    assert read_record(file) == RECORD
    with Image.open(file) as again:
        assert again.format == file_format.upper()
        assert 0x0112 not in again.getexif()  # no orientation, which viewers would apply


@pytest.mark.parametrize("video", ["gif", "mp4"])
def test_video_formats_hold_the_record(tmp_path, video):
    if video == "mp4":
        pytest.importorskip("av")
    frames = [Image.new("RGB", (32, 16), (20 * k, 100, 200)) for k in range(3)]
    file = tmp_path / f"video{SUFFIXES[video]}"
    file.write_bytes(ENCODERS[video](frames, 8, LONG_RECORD))
    assert read_record(file) == LONG_RECORD


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(TEXT, st.dictionaries(TEXT, VALUES, max_size=4), st.sampled_from(["png", "jpeg", "webp"]))
def test_any_text_survives(tmp_path, prompt, entries, file_format):
    record = entries | {"prompt": prompt}
    file = tmp_path / "image"
    file.write_bytes(encode_image(Image.new("RGB", (8, 8)), record, file_format))
    assert read_record(file) == record


def test_jpeg_is_refused_for_images_with_transparency():
    with pytest.raises(UserError, match="RGBA"):
        encode_image(Image.new("RGBA", (8, 8)), {}, "jpeg")


@pytest.mark.parametrize("comment", [b"", b"no JSON", b"[1]", json.dumps({"seed": 3}).encode()])
def test_comments_of_other_programs_are_no_records(tmp_path, comment):
    file = tmp_path / "other.gif"
    Image.new("RGB", (8, 8)).save(file, comment=comment)
    with pytest.raises(UserError, match=r"other\.gif"):
        read_record(file)
