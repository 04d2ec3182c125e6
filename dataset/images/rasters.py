"""Numbers of image files beyond 8-bit pictures, and their conversion to channels.

.npy        (h, w), (h, w, c) or (c, h, w), of any real type; numpy
16-bit PNG  gray: Pillow; color: imagecodecs, since Pillow drops the lower 8 bits silently
TIFF        in `dataset.images.tiff`
"""

import importlib
import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from math import prod
from threading import Lock
from types import ModuleType

import numpy as np
from jaxtyping import Shaped
from PIL import Image

from dataset.images.limits import check_size
from dataset.images.pixel_format import FLOATS, INTEGERS
from dataset.options import Layout
from dataset.source import MissingLibrary, Source, UnusableImage
from foundation.errors import UserError

# Python 3.11 can fail with a SystemError ("AST constructor recursion depth mismatch") when several
# threads parse literals at once, and numpy parses the header of a .npy file as a literal.
NPY_LOCK = Lock()
NPY_VERSIONS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
LUMA = (0.299, 0.587, 0.114)  # ITU-R 601
BAND_NUMBERS = 1 << 22  # numbers that are converted at once: 32 MiB of float64


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


def read_npy(content: bytes, path: Source) -> Raster:
    """Read an array of two or three axes; nothing is copied.

    Raises:
        UnusableImage: it holds other than real numbers, has other axes, or is cut off.
    """
    file = BytesIO(content)
    version = np.lib.format.read_magic(file)
    if version not in NPY_VERSIONS:
        raise UnusableImage(path, f"is of version {version} of the .npy format; save it again")
    with NPY_LOCK:
        shape, columns_first, dtype = NPY_VERSIONS[version](file)
    if dtype.hasobject:
        raise UnusableImage(path, "holds Python objects (a pickle), which are never opened")
    axes = len(shape) in (2, 3) and all(side > 0 for side in shape)
    if dtype.name not in INTEGERS + FLOATS or not axes:
        raise UnusableImage(
            path,
            f"is an array of {dtype.name[:40]} of shape {str(shape)[:80]}; needed are real numbers "
            "of shape (h, w), (h, w, c) or (c, h, w)",
        )
    check_size(path, shape[1], shape[0], prod(shape[2:]), dtype.itemsize)
    needed, given = prod(shape) * dtype.itemsize, len(content) - file.tell()
    if given < needed:
        raise UnusableImage(path, f"is cut off: {given} of {needed} bytes are there")
    values = np.frombuffer(content, dtype, prod(shape), file.tell())
    return Raster(to_native(values.reshape(shape, order="F" if columns_first else "C")), "auto")


def read_deep_png(content: bytes, path: Source, transparent: bytes) -> Raster:
    """Read a 16-bit PNG of which the size has been checked.

    transparent: the tRNS chunk: of gray, the level that is transparent.
    """
    if content[25] == 0:  # gray
        with Image.open(BytesIO(content), formats=("PNG",)) as image:
            values = np.asarray(image)
        if len(transparent) != 2:
            return Raster(values, color=True)
        (level,) = struct.unpack(">H", transparent)
        opacity = np.where(values == level, 0, 65535).astype(np.uint16)
        return Raster(np.stack([values, opacity], axis=2), color=True, alpha=True)
    imagecodecs = import_library("imagecodecs", path, "16-bit PNG in color")
    values = imagecodecs.png_decode(content)
    return Raster(values, color=True, alpha=values.shape[2] in (2, 4))


def to_native(values: Shaped[np.ndarray, "..."]) -> Shaped[np.ndarray, "..."]:
    """Convert to the byte order of this machine; values that have it are not copied."""
    return values.astype(values.dtype.newbyteorder("="), copy=False)


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
    if channels < 4 and not raster.alpha and color.shape[2] <= channels:
        return to_rgb(color) if channels == 3 else color  # a view
    convert = partial(convert_band, raster.alpha, channels, background)
    return in_bands(convert, values)


def convert_band(
    alpha: bool,
    channels: int,
    background: tuple[int, int, int],
    values: Shaped[np.ndarray, "h w _"],
) -> Shaped[np.ndarray, "h w {channels}"]:
    """Convert gray or RGB, with or without alpha, to gray, RGB or RGBA."""
    color = values[..., :-1] if alpha else values
    full = white(values.dtype)
    if channels == 4:
        opaque = np.full_like(values[..., :1], int(full) if full > 1 else full)
        return np.concatenate([to_rgb(color), values[..., -1:] if alpha else opaque], axis=2)
    if alpha:
        opacity = values[..., -1:] / full
        below = np.array(background) * (full / 255)
        color = to_dtype(to_rgb(color) * opacity + below * (1 - opacity), values.dtype)
    if channels == 3:
        return to_rgb(color)
    if color.shape[2] == 1:
        return color
    return to_dtype(color @ np.array(LUMA), values.dtype)[..., None]


def in_bands(
    function: Callable[[Shaped[np.ndarray, "..."]], Shaped[np.ndarray, "..."]],
    values: Shaped[np.ndarray, "h ..."],
) -> Shaped[np.ndarray, "h ..."]:
    """Return function(values), computed a few rows at a time, which bounds the memory for it."""
    rows = max(1, BAND_NUMBERS * len(values) // max(values.size, 1))
    if rows >= len(values):
        return function(values)
    first = function(values[:rows])
    result = np.empty((len(values), *first.shape[1:]), first.dtype)
    result[:rows] = first
    for start in range(rows, len(values), rows):
        result[start : start + rows] = function(values[start : start + rows])
    return result


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
