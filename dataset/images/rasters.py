"""Image files beyond 8-bit pictures: 16 bits and more, floats, any number of channels.

    .npy        (h, w), (h, w, c) or (c, h, w), of any real type; numpy
    16-bit PNG  gray: Pillow; color: imagecodecs, since Pillow drops the lower 8 bits silently
    TIFF        16-bit gray: Pillow; other deep files, and more than four channels: tifffile, which
                uses imagecodecs for compressions such as LZW

A TIFF of several pages is one image only if its metadata says that the pages are channels.
"""

import importlib
from dataclasses import dataclass
from io import BytesIO
from threading import Lock
from types import ModuleType
from typing import Any

import numpy as np
from jaxtyping import Shaped
from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

from dataset.images.pixel_format import FLOATS, INTEGERS, Layout
from dataset.source import MissingLibrary, Source, UnusableImage
from foundation.errors import UserError

NPY, PNG = b"\x93NUMPY", b"\x89PNG\r\n\x1a\n"
TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
EIGHT_BIT_MODES = frozenset(("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"))
SIXTEEN_BIT_MODES = frozenset(("I;16", "I;16B", "I;16L", "I;16N"))
ORIENTATION = 0x0112  # EXIF and TIFF tag; 5 to 8 exchange width and height
BITS_PER_SAMPLE, SAMPLES_PER_PIXEL = 258, 277  # TIFF tags
PREMULTIPLIED, STRAIGHT = 1, 2  # TIFF's codes for the two kinds of alpha
# Python 3.11 can fail with a SystemError ("AST constructor recursion depth mismatch") when several
# threads parse literals at once, and numpy parses the header of a .npy file as a literal.
NPY_LOCK = Lock()
LUMA = (0.299, 0.587, 0.114)  # ITU-R 601


@dataclass(frozen=True)
class Raster:
    """The numbers of an image file, and what the file says about their meaning.

    Args:
        values: (h, w), or three axes whose order is `layout`.
        layout: auto if the file does not say where the channels are, as a .npy file.
        color: the file says that it is gray or RGB; otherwise channels are never converted.
        alpha: the last channel is opacity.
    """

    values: Shaped[np.ndarray, "..."]
    layout: Layout = "hwc"
    color: bool = False
    alpha: bool = False

    @property
    def dtype(self) -> str:
        """Type of the numbers, as numpy names it."""
        return self.values.dtype.name

    def channels_first(self, channels: int | None, layout: Layout = "auto") -> bool:
        """Return whether the first axis holds the channels.

        channels: their number; None: unknown, so the shorter one of the first and the last axis is
            assumed to hold them. That is good enough for a report, but not for training.

        Raises:
            UserError: both axes may hold the channels, or neither of them.
        """
        if self.values.ndim == 2 or self.layout != "auto":
            return self.layout == "chw"
        if layout != "auto":
            return layout == "chw"
        first, _, last = self.values.shape
        if channels is None:
            return first < last
        if (first == channels) == (last == channels):
            axes = "both the first and the last axis" if first == channels else "no outer axis"
            raise UserError(
                f"has the shape {self.values.shape}, in which {axes} can be {channels} channels; "
                "state layout hwc or chw, and the number of channels"
            )
        return first == channels

    def interleaved(
        self, channels: int | None, layout: Layout = "auto"
    ) -> Shaped[np.ndarray, "h w c"]:
        """Return the numbers with the channels last."""
        if self.values.ndim == 2:
            return self.values[..., None]
        first = self.channels_first(channels, layout)
        return np.moveaxis(self.values, 0, -1) if first else self.values


def read_raster(path: Source) -> Raster | None:
    """Read a file beyond 8-bit pictures; None for all other files, which Pillow reads.

    Raises:
        UnusableImage: files of this kind are not supported.
        MissingLibrary: the library that reads files of this kind is not installed.
        Other exceptions of the reading libraries: the file is damaged.
    """
    with path.open("rb") as file:
        head = file.read(26)
        deep_png = head.startswith(PNG) and len(head) == 26 and head[24] == 16  # bits per sample
        if not deep_png and not head.startswith((NPY, *TIFF)):
            return None
        content = head + file.read()
    if deep_png:
        return read_deep_png(content, path, gray=head[25] == 0)  # color type
    if head.startswith(NPY):
        return read_npy(content, path)
    return read_deep_tiff(content, path)


def read_npy(content: bytes, path: Source) -> Raster:
    """Read an array of two or three axes."""
    with NPY_LOCK:
        values = to_native(np.load(BytesIO(content), allow_pickle=False))
    if values.dtype.name not in INTEGERS + FLOATS or values.ndim not in (2, 3) or not values.size:
        raise UnusableImage(
            path,
            f"is an array of {values.dtype.name} of shape {values.shape}; needed are real numbers "
            "of shape (h, w), (h, w, c) or (c, h, w)",
        )
    return Raster(values, "auto")


def read_deep_png(content: bytes, path: Source, gray: bool) -> Raster:
    """Read a 16-bit PNG."""
    with Image.open(BytesIO(content), formats=("PNG",)) as image:
        orientation = image.getexif().get(ORIENTATION, 1)
        if gray:
            return Raster(turn_upright(np.asarray(image), orientation), color=True)
    imagecodecs = import_library("imagecodecs", path, "16-bit PNG in color")
    try:
        values = imagecodecs.png_decode(content)
    except imagecodecs.PngError as error:
        raise UnusableImage(path, f"cannot be read: {error}") from error
    return Raster(turn_upright(values, orientation), color=True, alpha=values.shape[2] in (2, 4))


def read_deep_tiff(content: bytes, path: Source) -> Raster | None:
    """Read a TIFF; None if it is an 8-bit picture that Pillow reads."""
    try:
        with Image.open(BytesIO(content), formats=("TIFF",)) as image:
            assert isinstance(image, TiffImageFile)
            bits = max(image.tag_v2.get(BITS_PER_SAMPLE, (1,)))
            samples = image.tag_v2.get(SAMPLES_PER_PIXEL, 1)
            all_read = samples == 1 or (len(image.getbands()) > 1 and samples <= 4)
            if bits <= 8 and image.mode in EIGHT_BIT_MODES and all_read:
                return None
            if image.mode in SIXTEEN_BIT_MODES and all_read and image.n_frames == 1:
                return Raster(to_native(np.asarray(image)), color=True)  # Pillow has turned it
    except Image.UnidentifiedImageError:
        pass  # for example more than four channels; tifffile may read it
    tifffile = import_library("tifffile", path, "TIFF of this kind")
    try:
        with tifffile.TiffFile(BytesIO(content)) as file:
            return tiff_raster(file, path)
    except (tifffile.TiffFileError, IndexError) as error:
        raise UnusableImage(path, f"cannot be read: {error}") from error


def tiff_raster(file: Any, path: Source) -> Raster:
    """Read the first image of an open `tifffile.TiffFile`."""
    series, page = file.series[0], file.pages[0]
    if series.axes not in ("YX", "YXS", "SYX", "CYX", "YXC"):
        raise UnusableImage(
            path,
            f"has the axes {series.axes} of lengths {series.shape}; one image has only rows, "
            "columns and channels. Save the channels as samples of one page, or as .npy",
        )
    if series.dtype.name not in INTEGERS + FLOATS:
        raise UnusableImage(
            path, f"holds numbers of type {series.dtype.name}, which cannot be pixels"
        )
    values = to_native(series.asarray())
    if series.axes in ("SYX", "CYX"):
        values = np.moveaxis(values, 0, -1)
    alpha = alpha_type(page)
    if alpha == PREMULTIPLIED:
        values = unpremultiply(values)
    orientation = page.tags.get(ORIENTATION)
    photometric = page.photometric.name
    gray = values.ndim == 2 or values.shape[2] - bool(alpha) == 1
    return Raster(
        turn_upright(values, orientation.value if orientation else 1),
        color=photometric == "RGB" or (photometric == "MINISBLACK" and gray),
        alpha=bool(alpha) and "S" in series.axes,
    )


def alpha_type(page: Any) -> int:
    """Return PREMULTIPLIED or STRAIGHT if the last sample of a TIFF page is alpha, otherwise 0."""
    last = page.extrasamples[-1] if page.extrasamples else 0
    return int(last) if last in (PREMULTIPLIED, STRAIGHT) else 0


def unpremultiply(values: Shaped[np.ndarray, "h w c"]) -> Shaped[np.ndarray, "h w c"]:
    """Divide the colors by alpha, the last channel, by which they have been multiplied."""
    opacity = values[..., -1:] / white(values.dtype)
    color = values[..., :-1] / np.where(opacity == 0, 1, opacity)
    return np.concatenate([to_dtype(color, values.dtype), values[..., -1:]], axis=2)


def to_native(values: Shaped[np.ndarray, "..."]) -> Shaped[np.ndarray, "..."]:
    """Convert to the byte order of this machine."""
    return values.astype(values.dtype.newbyteorder("="))


def turn_upright(values: Shaped[np.ndarray, "..."], orientation: int) -> Shaped[np.ndarray, "..."]:
    """Turn (h, w) or (h, w, c) as the EXIF orientation, 1 to 8, asks for."""
    if orientation >= 5:
        values = values.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        values = values[::-1]
    return values[:, ::-1] if orientation in (2, 3, 6, 7) else values


def import_library(name: str, path: Source, kind: str) -> ModuleType:
    """Import an optional library that reads or writes files of this kind.

    Raises:
        MissingLibrary: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise MissingLibrary(
            f"{path}: {kind} needs the Python package {name}, which is not installed. "
            "Run: pip install tifffile imagecodecs"
        ) from error


def to_channels(
    raster: Raster, channels: int, layout: Layout, background: tuple[int, int, int]
) -> Shaped[np.ndarray, "h w {channels}"]:
    """Convert a raster to this number of channels; one without color must have it already.

    background: RGB, 0 to 255, seen through transparent pixels.

    Raises:
        UserError: the number of channels is another, and there is no conversion.
    """
    values = raster.interleaved(channels if not raster.color else None, layout)
    color = values[..., :-1] if raster.alpha else values
    if not raster.color or color.shape[2] not in (1, 3) or channels not in (1, 3, 4):
        if values.shape[2] != channels:
            raise UserError(
                f"has {values.shape[2]} channels, and {channels} are needed; use "
                f"channels {values.shape[2]}, or leave the file out"
            )
        return values
    full = white(values.dtype)
    if channels == 4:
        opaque = np.full_like(values[..., :1], int(full) if full > 1 else full)
        return np.concatenate([to_rgb(color), values[..., -1:] if raster.alpha else opaque], axis=2)
    if raster.alpha:
        opacity = values[..., -1:] / full
        below = np.array(background) * (full / 255)
        color = to_dtype(to_rgb(color) * opacity + below * (1 - opacity), values.dtype)
    if channels == 3:
        return to_rgb(color)
    if color.shape[2] == 1:
        return color
    return to_dtype(color @ np.array(LUMA), values.dtype)[..., None]


def to_rgb(color: Shaped[np.ndarray, "h w _"]) -> Shaped[np.ndarray, "h w 3"]:
    """Repeat one channel three times; leave three as they are."""
    return np.broadcast_to(color, (*color.shape[:2], 3))


def white(dtype: np.dtype) -> float:
    """Return the number that means white, or opaque: the largest integer, or 1."""
    return float(np.iinfo(dtype).max) if dtype.kind in "iu" else 1.0


def to_dtype(values: Shaped[np.ndarray, "*shape"], dtype: np.dtype) -> Shaped[np.ndarray, "*shape"]:
    """Convert numbers; to integers by rounding and clipping."""
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        values = values.round().clip(limits.min, limits.max)
    return values.astype(dtype)
