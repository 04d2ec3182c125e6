"""Whatever an image file holds, its pixels are right or it is refused as UnusableImage."""

import threading
import time
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dataset.folder import read_folder
from dataset.images.border import border
from dataset.images.containers import read_orientation
from dataset.images.decode import Picture, decode, read_frames
from dataset.images.limits import Budget, check_size
from dataset.images.rasters import Raster
from dataset.images.texts import read_texts
from dataset.images.transform import ImageTransform, inspect_image, load_image
from dataset.source import MissingLibrary, UnusableImage
from tests.helpers.data.image_files import chunk, good_files, png, saved, tiff, values

NAMES = sorted(good_files())
# Compressions without a checksum: a cut may leave a file that is whole for its decoder.
UNPROTECTED = ("baseline.jpg", "progressive.jpeg", "gray.jfif", "cmyk.jpe", "restarts.jif")


def pixels_of(path: Path) -> np.ndarray:
    def numbers(found: Picture | Raster) -> np.ndarray:
        return found.values if isinstance(found, Raster) else np.asarray(found.image)

    return decode(path, numbers)


def written(folder: Path, content: bytes, name: str = "a.bin") -> Path:
    (folder / name).write_bytes(content)
    return folder / name


@pytest.mark.parametrize("error", [
    MemoryError(), ZeroDivisionError("by 0"), AttributeError("no"), RecursionError("deep"),
    KeyError("tag"), AssertionError(), UserWarning("odd"), OSError(5, "disk"), ArithmeticError(),
])  # fmt: skip
def test_whatever_is_raised_becomes_the_one_error(error):
    with (
        pytest.raises(UnusableImage, match=r"^a\.png: cannot be read: .{2,}"),
        border(Path("a.png")),
    ):
        raise error


def test_what_a_library_says_is_short_and_on_one_line():
    with pytest.raises(UnusableImage) as caught, border(Path("a.png")):
        raise RuntimeError("\x1b[31mred\n" + "x" * 10**6)
    assert len(str(caught.value)) < 500
    assert str(caught.value).isprintable()


def test_a_missing_library_and_an_interrupt_pass():
    for error in (MissingLibrary("tifffile"), KeyboardInterrupt()):
        with pytest.raises(type(error)), border(Path("a.png")):
            raise error


def test_warnings_of_libraries_are_silent_even_where_they_are_errors():
    filters = list(warnings.filters)
    with border(Path("a.png")):
        warnings.warn("metadata", stacklevel=1)
    assert list(warnings.filters) == filters


@pytest.mark.parametrize("name", NAMES)
def test_a_cut_file_has_the_same_pixels_or_none(name, tmp_path):
    """Nothing is made up where a file ends too early."""
    content = good_files()[name]
    whole = pixels_of(written(tmp_path, content))
    for end in sorted({round(len(content) * k / 30) for k in range(1, 30)} | {len(content) - 1}):
        try:
            found = pixels_of(written(tmp_path, content[:end]))
        except UnusableImage:
            continue
        if name in UNPROTECTED and end == len(content) - 1:
            continue
        assert found.shape == whole.shape and (found == whole).all(), end


@pytest.mark.parametrize("name", [name for name in NAMES if name.endswith("png")])
def test_a_changed_bit_of_a_png_never_changes_the_pixels(name, tmp_path):
    content = good_files()[name]
    whole = pixels_of(written(tmp_path, content))
    for position in range(8, len(content), max(1, len(content) // 25)):
        changed = bytearray(content)
        changed[position] ^= 4
        try:
            found = pixels_of(written(tmp_path, bytes(changed)))
        except UnusableImage:
            continue
        turned = found.shape[:2] == whole.shape[1::-1]  # a bit of the orientation
        assert turned or (found == whole).all() or b"eXIf" in content, position


# What numbers mean.


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("compression", [None, "zlib", "lzw"])
def test_white_is_zero_is_inverted_in_every_depth(dtype, order, compression, tmp_path):
    black, limit = values(dtype=dtype), np.iinfo(dtype).max
    options = {"byteorder": order, "compression": compression}
    content = tiff(limit - black, photometric="miniswhite", **options)
    assert (pixels_of(written(tmp_path, content)) == black).all()
    content = tiff(black, photometric="minisblack", **options)
    assert (pixels_of(written(tmp_path, content)) == black).all()


@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("compression", [None, "zlib", "lzw", "packbits"])
@pytest.mark.parametrize("tile", [None, (16, 16)])
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_every_arrangement_of_rgb_gives_the_same_numbers(
    planar, compression, tile, dtype, tmp_path
):
    numbers = values(3, dtype=dtype)
    stored = np.moveaxis(numbers, -1, 0) if planar == "separate" else numbers
    content = tiff(
        stored, photometric="rgb", planarconfig=planar, compression=compression, tile=tile
    )
    assert (pixels_of(written(tmp_path, content)) == numbers).all()


def test_a_transparent_gray_level_of_16_bits_shows_the_background(tmp_path):
    numbers = np.full((7, 11, 1), 1000, np.uint16)
    numbers[0, 0] = 0x0102
    path = written(tmp_path, png(numbers, 16, 0, chunk(b"tRNS", b"\1\2")))
    pixels = ImageTransform(8, 1, crop="none", sides=(11, 7))(path)
    assert pixels[0, 0, 0] == 255 and pixels[0, 3, 3] == round(1000 / 257)


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (lambda: saved(Image.new("LAB", (8, 8)), "TIFF"), "Lab"),
        (lambda: tiff(values(4, dtype="uint16"), photometric="separated"), "4 channels of uint16"),
        (lambda: tiff(np.stack([values()] * 3), photometric="minisblack"), "3 pages"),
        (lambda: tiff(values(dtype="float32"), photometric="miniswhite"), "float32"),
    ],
)
def test_what_is_not_read_is_named(content, name, tmp_path):
    with pytest.raises(UnusableImage, match=name):
        inspect_image(written(tmp_path, content()))


def test_films_give_their_first_frame(tmp_path):
    first = np.moveaxis(values(3), -1, 0)
    for name in ("film.apng", "film.webp"):
        path = written(tmp_path, good_files()[name])
        found = ImageTransform(8, 3, crop="none", sides=(11, 7))(path)
        assert np.abs(found.astype(int) - first).mean() < (1 if "png" in name else 60)
        assert len(list(read_frames(path))) == 3


# Metadata.


@pytest.mark.parametrize(
    "entry",
    [
        b"\3\0\1\0\0\0\0\0\0\0",  # 0
        b"\3\0\1\0\0\0\x09\0\0\0",  # 9
        b"\3\0\2\0\0\0\6\0\6\0",  # two numbers
        b"\2\0\2\0\0\0006\0\0\0",  # the text "6"
        b"\x0b\0\1\0\0\0\0\0\xc0\x40",  # 6.0
        b"\5\0\1\0\0\0\x1a\0\0\0",  # a fraction
        b"\7\0\1\0\0\0\6\0\0\0",  # undefined
        b"\3\0\xff\xff\xff\xff\0\0\0\0",  # billions of numbers
    ],
)
def test_only_an_integer_from_1_to_8_turns_an_image(entry):
    head, tail = b"II*\0\x08\0\0\0\1\0\x12\1", bytes(4) + b"\6\0\0\0\1\0\0\0"
    assert read_orientation(head + b"\3\0\1\0\0\0\6\0\0\0" + tail) == 6
    assert read_orientation(head + entry + tail) == 1


@given(st.binary(max_size=200))
@settings(max_examples=50)
def test_no_exif_is_an_error(content):
    assert 1 <= read_orientation(content) <= 8
    assert 1 <= read_orientation(b"II*\0\x08\0\0\0" + content) <= 8


def test_metadata_of_any_kind_leaves_the_pixels_as_they_lie(tmp_path):
    plain = pixels_of(written(tmp_path, png(values(3), 8, 2)))
    for kind in (b"eXIf", b"iCCP", b"zTXt", b"iTXt", b"tEXt", b"acTL", b"pHYs", b"gAMA", b"sRGB"):
        for data in (b"", b"\0" * 4, b"x\0\0\xff", bytes(range(64))):
            path = written(tmp_path, png(values(3), 8, 2, chunk(kind, data)))
            assert (pixels_of(path) == plain).all()


def test_a_text_that_unpacks_to_gigabytes_is_refused(tmp_path):
    bomb = chunk(b"zTXt", b"note\0\0" + zlib.compress(bytes(1 << 25), 1))
    path = written(tmp_path, png(values(3), 8, 2, bomb))
    with pytest.raises(UnusableImage, match="16 MiB"):
        read_texts(path)
    assert load_image(path).size == (11, 7)
    many = chunk(b"tEXt", b"note\0" + b"x" * (1 << 22)) * 5
    path = written(tmp_path, png(values(3), 8, 2, many))
    with pytest.raises(UnusableImage, match="16 MiB"):
        read_texts(path)
    assert load_image(path).size == (11, 7)


# Limits.


@pytest.mark.parametrize("size", [(0, 5), (5, 0), (50000, 50000), (2**21, 1), (10**9, 10**9)])
def test_sizes_beyond_the_limits_are_refused(size):
    with pytest.raises(UnusableImage, match=f"{size[0]}x{size[1]}"):
        check_size(Path("a.png"), *size)


def test_threads_share_the_memory_for_decoding():
    budget, most, now, lock = Budget(100), 0, 0, threading.Lock()

    def work(size: int) -> None:
        nonlocal most, now
        with budget.hold(size):
            with lock:
                now += min(size, 100)
                most = max(most, now)
            time.sleep(0.002)
            with lock:
                now -= min(size, 100)

    threads = [threading.Thread(target=work, args=(size,)) for size in (40, 50, 60, 500, 10) * 6]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert not any(thread.is_alive() for thread in threads)
    assert 50 < most <= 100 and budget.used == 0


def test_one_bad_file_is_skipped_and_the_others_stay(tmp_path):
    for name, content in (
        ("a.png", "rgb.png"),
        ("b.tif", "deep-white.tif"),
        ("c.jfif", "gray.jfif"),
    ):
        written(tmp_path, good_files()[content], name)
    written(tmp_path, good_files()["deep-white.tif"][:60], "d.tif")
    written(tmp_path, b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "e.jpg")
    (tmp_path / "f.png").symlink_to("/dev/zero")
    data = read_folder(tmp_path, allow_missing_captions=True)
    assert [pair.path.name for pair in data.pairs] == ["a.png", "b.tif", "c.jfif"]
    assert sorted(entry.path.name for entry in data.unusable) == ["d.tif", "e.jpg", "f.png"]
