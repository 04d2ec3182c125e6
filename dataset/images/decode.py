"""Decoding: any image file, from anywhere, to a picture of 8 bits or to other numbers, upright.

The order is the same for all formats: the content says what the file is, its header is checked
(`dataset.images.limits`), memory is waited for, a library decodes what the pixels depend on, and
the result is turned upright. Errors of libraries end at `dataset.images.border`.
"""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from io import BytesIO
from typing import TypeVar

import numpy as np
from jaxtyping import Shaped
from PIL import Image, ImageSequence

from dataset.images.border import border, file_size, refuse_foreign
from dataset.images.containers import (
    Parts,
    read_orientation,
    split_jpeg,
    split_png,
    split_webp,
)
from dataset.images.formats import Kind, recognize
from dataset.images.limits import (
    BUDGET,
    DECODING_BYTES,
    LARGE_FILE,
    MIB,
    MOST_FILE_BYTES,
    check_size,
)
from dataset.images.rasters import Raster, read_deep_png, read_npy, turn_upright
from dataset.images.tiff import is_picture, read_deep_tiff
from dataset.images.tiff_header import TiffHeader, judge_header
from dataset.source import Member, Source, UnusableImage

Result = TypeVar("Result")

EIGHT_BIT_MODES = frozenset(("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"))
ONE_BYTE_MODES = frozenset(("1", "L", "P"))  # Pillow stores the pixels of all others in 4 bytes
# Pillow takes memory in blocks of 16 MiB. glibc keeps such blocks for the thread that had them,
# which adds up to gigabytes; blocks of more than 64 MiB are shared by all threads, or given back.
Image.core.set_block_size(1024 * MIB)
COEFFICIENT_BYTES = 6  # per pixel of a JPEG with several scans: 3 numbers of 2 bytes
PILLOW_FORMATS = ("BMP", "DIB", "GIF", "JPEG", "PNG", "TIFF", "WEBP")
HEAD = 64 * 1024  # bytes of a JPEG that hold its size, unless its metadata are larger
PNG_COLORS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # color type -> channels
MOST_PACKED = 1032  # bytes that Deflate can make of one
TURNS = {  # orientation of EXIF -> what turns the pixels upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True)
class Picture:
    """A picture of 8 bits.

    Args:
        image: decoded, upright; possibly smaller than in the file.
        size: width and height in the file, upright.
        mode: Pillow's name for the kind of pixels in the file.
    """

    image: Image.Image
    size: tuple[int, int]
    mode: str


@dataclass(frozen=True)
class Plan:
    """What is left to do after the header has been checked.

    Args:
        memory: bytes that decoding and converting take, roughly.
        run: decodes.
        facts: size upright and mode of a picture; None where only decoding tells.
    """

    memory: int
    run: Callable[[], Picture | Raster]
    facts: tuple[tuple[int, int], str] | None = None


def decode(
    path: Source, use: Callable[[Picture | Raster], Result], shrink_to: int | None = None
) -> Result:
    """Decode an image file, and return what a function makes of it; memory is held meanwhile.

    shrink_to: decode a JPEG at 1/2, 1/4 or 1/8 of its size if both sides keep this many pixels;
        large photos then load several times faster.

    Raises:
        UnusableImage: the file cannot be read; whatever the reason is.
        MissingLibrary: the library that reads it is not installed.
    """
    size = file_size(path)
    large = size > LARGE_FILE
    with BUDGET.hold(DECODING_BYTES) if large else nullcontext():
        with border(path):
            plan = make_plan(read_content(path), path, shrink_to)
        with nullcontext() if large else BUDGET.hold(plan.memory):
            with border(path):
                result = [plan.run()]
            del plan
            return use(result.pop())  # nothing refers to the pixels once this is over


def read_content(path: Source) -> bytes:
    """Read a file; it may have grown since its size was asked for."""
    with path.open("rb") as file:
        content = file.read(MOST_FILE_BYTES + 1)
    if len(content) > MOST_FILE_BYTES:
        raise UnusableImage(path, "grows while it is read")
    return content


def make_plan(content: bytes, path: Source, shrink_to: int | None) -> Plan:
    """Check the header of a file, and return how it is decoded."""
    kind = recognize(content[:64])
    if kind is None:
        raise refuse_foreign(path, content[:1024])
    if kind == "NPY":
        return Plan(3 * len(content), lambda: read_npy(content, path))
    if kind == "TIFF":
        return plan_tiff(TiffHeader(content, path))
    if kind == "PNG":
        return plan_png(split_png(content, path), path)
    if kind == "JPEG":
        parts = split_jpeg(content, path)
    else:
        parts = split_webp(content, path) if kind == "WEBP" else Parts(content)
    return plan_picture(parts, kind, path, shrink_to)


def plan_png(parts: Parts, path: Source) -> Plan:
    header = parts.pixels[8:33]
    if len(header) < 25 or header[4:8] != b"IHDR":
        raise UnusableImage(path, "is cut off or damaged: a PNG begins with its header")
    width, height = int.from_bytes(header[8:12]), int.from_bytes(header[12:16])
    bits, channels = header[16], PNG_COLORS.get(header[17], 4)
    check_size(path, width, height, channels, 2 if bits == 16 else 1)
    needed = height * (1 + -(-width * channels * bits // 8))
    if needed > MOST_PACKED * len(parts.pixels):
        raise UnusableImage(
            path,
            f"is cut off: {width}x{height} pixels are {needed:,} bytes, which cannot be packed "
            f"into {len(parts.pixels):,}",
        )
    if bits != 16:
        return plan_picture(parts, "PNG", path)
    orientation = read_orientation(parts.exif)

    def run() -> Raster:
        raster = read_deep_png(parts.pixels, path, parts.transparent)
        return turned(raster, orientation)

    return Plan(8 * width * height * (channels + 1), run)


def plan_tiff(header: TiffHeader) -> Plan:
    judge_header(header)
    path, (width, height) = header.path, header.size
    if is_picture(header):
        return plan_picture(Parts(header.structure()), "TIFF", path, turn=header.orientation)
    numbers = width * height * header.samples * header.pages
    depth = max(1, header.bits // 8)
    return Plan(
        numbers * (3 * depth + 4), lambda: turned(read_deep_tiff(header), header.orientation)
    )


def turned(raster: Raster, orientation: int) -> Raster:
    """Turn the numbers of a file upright; nothing is copied."""
    values = turn_upright(raster.values, orientation)
    return Raster(values, raster.layout, raster.color, raster.alpha)


def plan_picture(
    parts: Parts, kind: Kind, path: Source, shrink_to: int | None = None, turn: int | None = None
) -> Plan:
    """Plan the decoding by Pillow, which reads only the header for now.

    turn: the orientation, if EXIF does not state it.
    """
    if parts.size is not None:  # before Pillow allocates anything
        check_size(path, *parts.size)
    image = Image.open(BytesIO(parts.pixels), formats=(kind,))
    size, mode = image.size, image.mode
    if mode not in EIGHT_BIT_MODES:
        raise UnusableImage(path, f"has pixels of kind {mode!r}, which are not supported")
    check_size(path, *size, channels=len(image.getbands()))
    if shrink_to is not None:
        image.draft(None, (shrink_to, shrink_to))
    orientation = read_orientation(parts.exif) if turn is None else turn

    upright_size = size if orientation < 5 else (size[1], size[0])

    def run() -> Picture:
        image.load()
        info = image.info.get("transparency")
        image.info = {} if info is None else {"transparency": info}
        if mode in ("P", "PA") and image.palette is None:
            raise UnusableImage(path, "is damaged: it has no palette, and its pixels are of one")
        if info is not None:  # so that damage is found here, not later
            for other in ("RGB", "RGBA"):
                image.crop((0, 0, 1, 1)).convert(other)
        upright = image.transpose(TURNS[orientation]) if orientation in TURNS else image
        return Picture(upright, upright_size, mode)

    bytes_each = 1 if mode in ONE_BYTE_MODES else 4
    memory = image.width * image.height * (bytes_each * (2 if orientation > 1 else 1) + 4)
    if parts.scans > 1:
        memory += size[0] * size[1] * COEFFICIENT_BYTES
    return Plan(memory, run, (upright_size, mode))


# What callers ask for -----------------------------------------------------------------------------


def read_header(path: Member) -> tuple[tuple[int, int], str] | None:
    """Return size upright and kind of the pixels of a picture that is not decoded.

    The beginning of a JPEG is read, and the whole file of other formats. None where only decoding
    tells.

    Raises:
        UnusableImage: the header is damaged.
    """
    size = file_size(path)
    with border(path):
        content = path.read_head(HEAD)
        scan = recognize(content[:64]) == "JPEG" and b"\xff\xda" in split_jpeg(content, path).pixels
        if size > HEAD and not scan:
            content = path.read_head(size)
        return make_plan(content, path, None).facts


def read_raster(path: Source) -> Raster | None:
    """Read the numbers of a file beyond 8-bit pictures; None for a picture.

    Raises:
        UnusableImage: the file cannot be read.
        MissingLibrary: the library that reads files of this kind is not installed.
    """
    return decode(path, lambda found: found if isinstance(found, Raster) else None, shrink_to=1)


def read_frames(path: Source) -> Iterator[Shaped[np.ndarray, "..."]]:
    """Yield the pixels of each frame as they are in the file; most images have one frame.

    Raises:
        UnusableImage: the file cannot be read.
    """
    raster = read_raster(path)
    if raster is not None:
        yield raster.interleaved(channels=None)
        return
    with border(path):
        image = Image.open(BytesIO(read_content(path)), formats=PILLOW_FORMATS)
        frames = ImageSequence.Iterator(image)
    while True:
        with border(path):
            frame = next(frames, None)
            if frame is None:
                return
            check_size(path, *frame.size, channels=len(frame.getbands()))
            pixels = np.asarray(frame.convert("RGB") if image.format == "GIF" else frame)
        yield pixels
