"""Which files are images: by ending, and by content under any ending."""

import pytest
from PIL import Image

from dataset.images.formats import EXTENSIONS, name_foreign, recognize, unread_format


@pytest.mark.parametrize("ending", sorted(EXTENSIONS))
def test_an_ending_is_read_or_named_as_not_read(ending):
    assert unread_format(ending) is None
    assert unread_format(ending.upper()) is None


def test_every_other_ending_that_pillow_knows_has_a_name():
    for ending in Image.registered_extensions():
        assert ending in EXTENSIONS or unread_format(ending), ending
    assert unread_format(".HEIC") == "HEIC"
    assert unread_format(".psd") == "Photoshop"
    assert unread_format(".txt") is None and unread_format("") is None


@pytest.mark.parametrize(
    ("head", "name"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC"),
        (b"\0\0\0\x1cftypmif1\0\0\0\0avifmif1", "AVIF"),
        (b"\0\0\0\x20ftypisom\0\0\x02\0isomiso2", "MP4"),
        (b"\xff\x0a\xfa\x1f", "JPEG XL"),
        (b"8BPS\0\x01", "Photoshop"),
        (b"  \n<svg xmlns=", "SVG"),
        (b"<?xml version='1.0'?>\n<svg>", "SVG"),
        (b"\xef\xbb\xbf<!DOCTYPE html>", "HTML"),
        (b"%PDF-1.7", "PDF"),
        (b"P6\n8 8\n255\n", "PPM"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"),
        (b'{"error": 404}', "JSON"),
        (b"RIFF\0\0\0\0WAVE", "RIFF"),
    ],
)
def test_the_content_names_a_format_that_is_not_read(head, name):
    assert recognize(head) is None
    assert name in (name_foreign(head) or "")


def test_unknown_content_has_no_name():
    assert name_foreign(b"") is None
    assert name_foreign(bytes(64)) is None
    assert name_foreign(b"hello") is None
