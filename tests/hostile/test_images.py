"""Hostile image files: each is read as it should be, or refused by name, within small limits.

All of them go through the reader as trainings use it, and some through `check.py`.
"""

import os
import struct
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dataset.images.transform import inspect_image
from tests.helpers.data.image_files import (
    PNG_SIGNATURE,
    chunk,
    good_files,
    png,
    saved,
    tiff,
    values,
)
from tests.helpers.hostile import Check, HostileCase, accepted, check_case, in_ci, refused, script
from tests.hostile.targets.images import read

Make = Callable[[], bytes]
MEMORY = 400 * 10**6  # bytes; an image of 11x7 pixels needs none
SECONDS = 10.0


def case(name: str, file: str, make: Make | bytes, right: Check, memory: int = MEMORY):
    """Return a case of one file that the reader gets."""
    write = partial(write_file, file, make)
    return HostileCase(name, write, partial(read, Path(file)), right, SECONDS, memory)


def write_file(name: str, make: Make | bytes, folder: Path) -> None:
    (folder / name).write_bytes(make if isinstance(make, bytes) else make())


def good(name: str) -> bytes:
    return good_files()[name]


def cut(name: str, share: float) -> bytes:
    content = good(name)
    return content[: int(share * len(content))]


def header_png(width: int, height: int, bits: int = 8, color: int = 2) -> bytes:
    """Return a PNG that claims a size; its pixels are missing."""
    header = struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(bytes(1000)))
    return PNG_SIGNATURE + chunk(b"IHDR", header) + pixels + chunk(b"IEND", b"")


def raw_tiff(*entries: tuple[int, int, int, int], order: str = "<", extra: bytes = b"") -> bytes:
    """Return a TIFF of one page: tag, type, count, value; `extra` follows the header of 8 bytes."""
    mark = b"II*\0" if order == "<" else b"MM\0*"
    packed = b"".join(
        struct.pack(order + ("HHIHH" if kind == 3 and count == 1 else "HHII"), *entry, *pad)
        for entry in entries
        for _, kind, count, _ in [entry]
        for pad in [(0,) if kind == 3 and count == 1 else ()]
    )
    start = 8 + len(extra)
    head = mark + struct.pack(order + "I", start) + extra
    return head + struct.pack(order + "H", len(entries)) + packed + bytes(4)


def plain_tiff(changes: dict[int, tuple[int, int, int] | None]) -> bytes:
    """Return a gray TIFF of 4x4 pixels with other tags: tag -> (type, count, value)."""
    entries = {
        256: (3, 1, 4),
        257: (3, 1, 4),
        258: (3, 1, 8),
        259: (3, 1, 1),
        262: (3, 1, 1),
        273: (4, 1, 8),
        277: (3, 1, 1),
        278: (3, 1, 4),
        279: (4, 1, 16),
        **changes,
    }
    listed = [(tag, *entry) for tag, entry in sorted(entries.items()) if entry is not None]
    return raw_tiff(*listed, extra=bytes(range(16)))


def npy_header(shape: object, descr: str = "|u1", payload: bytes = bytes(64)) -> bytes:
    text = str({"descr": descr, "fortran_order": False, "shape": shape}).encode()
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(text) + 1) + text + b"\n" + payload


def huge_gif() -> bytes:
    content = bytearray(good("one.gif"))
    content[6:10] = b"\xff\xff\xff\xff"
    return bytes(content)


def jpeg_of_many_scans() -> bytes:
    content = good("progressive.jpeg")
    start = content.index(b"\xff\xda")
    scan = content[start : content.index(b"\xff\xc4", start + 2)]
    return content[:start] + scan * 5000 + content[start:]


def with_exif(content: bytes) -> Callable[[], bytes]:
    return lambda: saved(Image.fromarray(values(3)), "JPEG", exif=b"Exif\0\0" + content)


def deflated_tiff(side: int, samples: int, pixels: int) -> bytes:
    """Return a Deflate TIFF that claims a size, with so many zero bytes packed in its one strip."""
    packer = zlib.compressobj(1)
    parts = [packer.compress(bytes(1 << 20)) for _ in range(pixels >> 20)]
    packed = b"".join(parts) + packer.flush()
    entries = {256: side, 257: side, 259: 8, 262: 1, 273: 8, 277: samples, 278: side}
    listed = [(tag, 4, 1, value) for tag, value in entries.items()]
    listed += [(258, 3, 1, 16), (279, 4, 1, len(packed)), (284, 3, 1, 1)]
    return raw_tiff(*sorted(listed), extra=packed)


def text_bomb(kind: bytes) -> bytes:
    packed = zlib.compress(bytes(1 << 26), 1)
    data = b"a\0\0" + packed if kind == b"zTXt" else b"a\0\1\0\0\0" + packed
    return png(values(3), 8, 2, chunk(kind, data))


OTHER_FORMATS = {
    "HEIC": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic",
    "AVIF": b"\0\0\0\x1cftypavif\0\0\0\0mif1avif",
    "JPEG XL": b"\xff\x0a\xfa\x1f\x01",
    "JPEG XL.": b"\0\0\0\x0cJXL \r\n\x87\n",
    "JPEG 2000": b"\0\0\0\x0cjP  \r\n\x87\n",
    "Photoshop": b"8BPS\0\1",
    "SVG": b'<?xml version="1.0"?><svg xmlns="x"/>',
    "PDF": b"%PDF-1.7\n",
    "HTML": b"<!DOCTYPE html><p>404",
    "JSON": b'{"error": "not found"}',
    "PPM": b"P6\n2 2\n255\n" + bytes(12),
    "icon": b"\0\0\1\0\1\0",
    "OpenEXR": b"v/1\1\2\0\0\0",
    "MP4": b"\0\0\0\x20ftypisom\0\0\2\0isom",
    "zip": b"PK\3\4",
    "gzip": b"\x1f\x8b\x08",
    "Parquet": b"PAR1",
    "Git LFS": b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n",
    "program": b"\x7fELF\2",
    "RIFF": b"RIFF\0\0\0\0WAVEfmt ",
}
FOREIGN = [
    case(f"{name} as JPEG", "a.jpg", content + bytes(64), refused(rf"a\.jpg.*{name.strip('.')}"))
    for name, content in OTHER_FORMATS.items()
]

EMPTY_OR_CUT = [
    case("nothing", "a.png", b"", refused(r"a\.png.*0 bytes")),
    case("zeros", "a.png", bytes(5000), refused(r"a\.png")),
    case("text", "a.jpg", b"just a text\n", refused(r"a\.jpg")),
    *(
        case(f"{name} cut at {share:.0%}", name, partial(cut, name, share), refused("."))
        for share in (0.05, 0.4, 0.8)
        for name in (
            *("rgb.png", "deep-rgba.png", "progressive.jpeg", "lossless.webp", "rgb.bmp"),
            *("deep-rgb.tif", "strips.tif", "five.npy"),
        )
    ),
]

BOMBS = [
    case("PNG of 2 billion pixels", "a.png", header_png(50000, 50000), refused("50000x50000.*512")),
    case("PNG of all pixels", "a.png", header_png(2**31 - 1, 2**31 - 1), refused("512 MiB")),
    case("PNG of 16 bits", "a.png", header_png(13000, 13000, 16, 6), refused("13000x13000.*512")),
    case("PNG without width", "a.png", header_png(0, 5), refused("0x5")),
    case("PNG of one long row", "a.png", header_png(2**24, 1), refused("1,048,576")),
    case("PNG just below the limit", "a.png", header_png(12000, 12000), refused("432,012,000")),
    case("packed text", "a.png", partial(text_bomb, b"zTXt"), accepted()),
    case("packed international text", "a.png", partial(text_bomb, b"iTXt"), accepted()),
    case("GIF with a huge canvas", "a.gif", huge_gif, refused("4294836225|65535")),
    case("JPEG of 5000 scans", "a.jpg", jpeg_of_many_scans, refused("50..")),
    case(
        "TIFF of 30000 a side", "a.tif", lambda: deflated_tiff(30000, 5, 1), refused("30000.*512")
    ),
    case(
        "TIFF strip of half a gigabyte",
        "a.tif",
        lambda: deflated_tiff(64, 1, 1 << 29),
        accepted(),
    ),
    case("npy of a huge shape", "a.npy", npy_header((10**6, 10**6)), refused("1000000x1000000")),
    case("npy beyond all sizes", "a.npy", npy_header((2**62, 2**62)), refused("MiB")),
    case("npy with many axes", "a.npy", npy_header((1,) * 30), refused(r"\(1, 1")),
    case("npy of a negative side", "a.npy", npy_header((-4, 4)), refused(r"-4")),
    case("npy of fractions", "a.npy", npy_header((4.5, 4)), refused(r"a\.npy")),
    case("npy of no tuple", "a.npy", npy_header([4, 4]), refused(r"a\.npy")),
    case("npy longer than its file", "a.npy", npy_header((99, 99)), refused("64 of 9801")),
    case("npy of objects", "a.npy", npy_header((4, 4), "|O"), refused("pickle")),
    case("npy of records", "a.npy", npy_header((4, 4), "|V9"), refused("void")),
    case("npy of texts", "a.npy", npy_header((2, 2), "<U4"), refused("str")),
    case("npy of dates", "a.npy", npy_header((2, 2), "<M8[s]"), refused("datetime")),
    case("npy of a wrong type", "a.npy", npy_header((2, 2), "nonsense"), refused(r"a\.npy")),
    case("npy of code", "a.npy", npy_header("__import__('os')"), refused(r"a\.npy")),
    case("npy nested deeply", "a.npy", b"\x93NUMPY\1\0\x40\x1f" + b"(" * 8000, refused(r"a\.npy")),
    case("npy of a long header", "a.npy", b"\x93NUMPY\1\0\xff\xff" + b" " * 65535, refused("a")),
    case("npy of the future", "a.npy", b"\x93NUMPY\x09\0" + bytes(100), refused(r"a\.npy")),
]

TAGS = b"II*\0\x08\0\0\0\x01\0"  # of EXIF with one tag
EXIF = {
    "orientation as text": TAGS + b"\x12\1\2\0\2\0\0\0006\0\0\0" + bytes(4),
    "orientation as a fraction": TAGS + b"\x12\1\5\0\1\0\0\0\x1a\0\0\0\0\0\0\0\6\0\0\0\1\0\0\0",
    "orientation 99": TAGS + b"\x12\1\3\0\1\0\0\0\x63\0\0\0" + bytes(4),
    "orientation as a list": TAGS + b"\x12\1\3\0\2\0\0\0\6\0\6\0" + bytes(4),
    "EXIF of nonsense": b"nonsense" * 20,
    "EXIF that leads to itself": TAGS + b"\x69\x87\4\0\1\0\0\0\x08\0\0\0\x08\0\0\0",
    "EXIF of 65535 tags": b"II*\0\x08\0\0\0\xff\xff" + bytes(99),
}
CHUNKS = {
    "empty EXIF": chunk(b"eXIf", b""),
    "damaged profile": chunk(b"iCCP", b"x\0\0yy"),
    "damaged text": chunk(b"zTXt", b"x\0\0yyyy"),
    "text of an unknown packing": chunk(b"zTXt", b"x\0\x09yy"),
    "resolution cut off": chunk(b"pHYs", b"\0"),
    "gamma of no bytes": chunk(b"gAMA", b""),
    "animation without frames": chunk(b"acTL", bytes(8)),
}
TAG_TROUBLE = {
    "orientation as text": {274: (2, 2, 0x36)},
    "EXIF outside": {34665: (4, 1, 10**9)},
    "resolution of no number": {282: (5, 1, 12)},
    "profile outside": {34675: (7, 10**9, 10**9)},
}
METADATA = [  # none of it decides about the pixels
    *(case(f"JPEG: {k}", "a.jpg", with_exif(v), accepted()) for k, v in EXIF.items()),
    *(case(f"PNG: {k}", "a.png", png(values(3), 8, 2, v), accepted()) for k, v in CHUNKS.items()),
    *(case(f"TIFF: {k}", "a.tif", plain_tiff(v), accepted()) for k, v in TAG_TROUBLE.items()),
    case(
        "JPEG: profile of nonsense",
        "a.jpg",
        lambda: saved(Image.fromarray(values(3)), "JPEG", icc_profile=b"x" * 99),
        accepted(),
    ),
]


def odd_tiff(name: str, pattern: str, **tags: tuple[int, int, int] | None):
    changes = {int(tag[1:]): entry for tag, entry in tags.items()}
    return case(
        f"TIFF {name}", "a.tif", lambda: plain_tiff(changes), refused(rf"a\.tif.*{pattern}")
    )


def complex_tiff() -> bytes:
    return tiff(values(dtype="float32").astype(np.complex64), photometric="minisblack")


def stack_tiff() -> bytes:
    return tiff(np.moveaxis(values(5), -1, 0), photometric="minisblack")


def lab_tiff() -> bytes:
    return saved(Image.new("LAB", (8, 8)), "TIFF")


def deep(samples: int, **options: Any) -> Make:
    return lambda: tiff(values(samples, dtype="uint16"), planarconfig="contig", **options)


MEANINGS = [
    odd_tiff("without width", "no pixels", t256=None),
    odd_tiff("without height", "no pixels", t257=None),
    odd_tiff("of no rows in a strip", "no pixels", t278=(3, 1, 0)),
    odd_tiff("of a million strips", "strips", t256=(4, 1, 1), t257=(4, 1, 10**6), t278=(3, 1, 1)),
    odd_tiff("without its strip", "0 of 1", t273=None),
    odd_tiff("with its strip beyond the end", "1000000", t273=(4, 1, 10**6)),
    odd_tiff("with its strip cut off", "16 bytes", t279=(4, 1, 3)),
    odd_tiff("of 12 bits", "12 bits", t258=(3, 1, 12)),
    odd_tiff("of 0 bits", "0", t258=(3, 1, 0)),
    odd_tiff("of 60000 samples", "60000", t277=(3, 1, 60000)),
    odd_tiff("of undefined numbers", "undefined", t339=(3, 1, 4)),
    odd_tiff("of an unknown packing", "9999", t259=(3, 1, 9999)),
    odd_tiff("of an old JPEG", "compression 6", t259=(3, 1, 6)),
    odd_tiff("of an unknown color", "77", t262=(3, 1, 77)),
    odd_tiff("without a color", "262", t262=None),
    odd_tiff("of a sensor's mosaic", "mosaic", t262=(3, 1, 32803)),
    odd_tiff("of a mask", "mask", t262=(3, 1, 4)),
    odd_tiff("with a preview first", "preview", t254=(4, 1, 1)),
    odd_tiff("without its palette", ".", t262=(3, 1, 3)),
    odd_tiff("of RGB in one channel", "RGB in 1", t262=(3, 1, 2)),
    odd_tiff("of YCbCr in one channel", "YCbCr", t262=(3, 1, 6)),
    odd_tiff("of a fraction as width", ".", t256=(5, 1, 8)),
    odd_tiff("with a billion bits", "258", t258=(3, 10**9, 8)),
    case("TIFF without tags", "a.tif", b"II*\0\x08\0\0\0\0\0" + bytes(20), refused("0 tags")),
    case("TIFF of 65535 tags", "a.tif", b"II*\0\x08\0\0\0\xff\xff" + bytes(20), refused("65535")),
    case("TIFF that begins beyond the end", "a.tif", b"II*\0\xff\xff\xff\x7f", refused(r"a\.tif")),
    case("TIFF of complex numbers", "a.tif", complex_tiff, refused("complex")),
    case("TIFF of five pages", "a.tif", stack_tiff, refused("5 pages")),
    case("TIFF of Lab", "a.tif", lab_tiff, refused("Lab")),
    case("TIFF of 16-bit CMYK", "a.tif", deep(4, photometric="separated"), refused("uint16")),
    case("TIFF of 16-bit YCbCr", "a.tif", deep(3, photometric="ycbcr"), refused("uint16")),
]


def checked(name: str, make: Callable[[Path], object], pattern: str) -> HostileCase:
    """Return a case of a data folder with one good picture, through check.py."""

    def right(outcome, folder):
        assert outcome.status in (0, 1), outcome.text[-3000:]
        assert pattern in outcome.text, outcome.text[-3000:]

    work = script("check", "data", "--batch-size", "1")
    return HostileCase(name, partial(make_data, make), work, right, 20.0, 600 * 10**6)


def make_data(make: Callable[[Path], object], folder: Path) -> None:
    data = folder / "data"
    data.mkdir()
    (data / "red heart.png").write_bytes(good("rgb.png"))
    make(data)


def make_pipe(data: Path) -> None:
    os.mkfifo(data / "blue plum.png")


def make_device(data: Path) -> None:
    (data / "blue plum.png").symlink_to("/dev/zero")


def make_file(content: Make | bytes, data: Path) -> None:
    write_file("blue plum.jpg", content, data)


CHECKED = [
    checked("a picture is a pipe", make_pipe, "blue plum.png"),
    checked("a picture is a device", make_device, "blue plum.png"),
    checked("EXIF of text", partial(make_file, with_exif(EXIF["orientation as text"])), "2 "),
    checked("HEIC in a folder", partial(make_file, OTHER_FORMATS["HEIC"]), "HEIC"),
    checked("a bomb", partial(make_file, header_png(50000, 50000)), "50000x50000"),
    checked("a page of HTML", partial(make_file, OTHER_FORMATS["HTML"]), "HTML"),
    checked("five pages", partial(make_file, stack_tiff), "5 pages"),
    checked("an unreadable TIFF", partial(make_file, plain_tiff({258: (3, 1, 12)})), "12 bits"),
]

CASES = [*FOREIGN, *EMPTY_OR_CUT, *BOMBS, *METADATA, *MEANINGS, *CHECKED]


@pytest.mark.parametrize("case", in_ci(CASES, 12))
def test_hostile_images(case, world, tmp_path):
    check_case(case, world, tmp_path)


SIDE = 9000  # of a picture that takes 324 MB


def write_large(folder: Path) -> None:
    packer, row = zlib.compressobj(1), bytes(1 + 3 * SIDE)
    pixels = b"".join(packer.compress(row) for _ in range(SIDE)) + packer.flush()
    header = struct.pack(">IIBBBBB", SIDE, SIDE, 8, 2, 0, 0, 0)
    chunks = (b"IHDR", header), (b"IDAT", pixels), (b"IEND", b"")
    content = PNG_SIGNATURE + b"".join(chunk(kind, data) for kind, data in chunks)
    (folder / "a.png").write_bytes(content)


def inspect_many() -> None:
    with ThreadPoolExecutor(12) as pool:
        list(pool.map(inspect_image, [Path("a.png")] * 12))


@pytest.mark.slow
def test_threads_do_not_add_up_their_memory(world, tmp_path):
    large = HostileCase(
        "large", write_large, inspect_many, accepted(), seconds=120.0, memory=1200 * 10**6
    )
    check_case(large, world, tmp_path)


def test_there_are_enough_cases():
    assert len(CASES) >= 100
