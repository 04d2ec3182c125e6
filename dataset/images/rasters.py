"""Files that are more than 8-bit pictures: 16 bits and more, floats, any number of channels.

    .npy        (h, w), (h, w, c) or (c, h, w), of any real type; numpy
    16-bit PNG  gray: Pillow; others: imagecodecs, since Pillow drops their lower 8 bits silently
    TIFF        16-bit gray: Pillow; all other that is deep, or has more than four channels:
                tifffile, which takes compressions such as LZW from imagecodecs

A TIFF of several pages is one image only if it says that they are channels.
"""

import importlib
from dataclasses import dataclass
from io import BytesIO
from types import ModuleType
from typing import Any

import numpy as np
from jaxtyping import Shaped
from PIL import Image

from dataset.images.pixel_format import FLOATS, INTEGERS, Layout
from dataset.images.unusable import MissingLibrary, UnusableImage
from dataset.members import Source
from foundation.errors import UserError

NPY, PNG = b"\x93NUMPY", b"\x89PNG\r\n\x1a\n"
TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
EIGHT_BITS = frozenset(("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"))
SIXTEEN_BITS = frozenset(("I;16", "I;16B", "I;16L", "I;16N"))
ORIENTATION = 0x0112  # EXIF and TIFF tag; 5 to 8 exchange width and height
BITS_PER_SAMPLE, SAMPLES_PER_PIXEL = 258, 277  # TIFF tags
LUMA = (0.299, 0.587, 0.114)  # ITU-R 601


@dataclass(frozen=True)
class Raster:
    """The numbers of a file.

    Args:
        values: (h, w) or with channels, last unless `layout` says otherwise.
        layout: auto where the file does not say it, as for a .npy of three axes.
        color: whether it says that it is gray or RGB; else channels are never converted.
        alpha: the last channel is opacity.
    """

    values: Shaped[np.ndarray, "..."]
    layout: Layout = "hwc"
    color: bool = False
    alpha: bool = False

    @property
    def dtype(self) -> str:
        return self.values.dtype.name

    def channels_first(self, channels: int | None, layout: Layout = "auto") -> bool:
        """Whether the first axis is the channels.

        channels: how many there are; None: of the first and the last axis it is the shorter one,
            which is good enough for a report and not for training.
        """
        if self.values.ndim == 2 or self.layout != "auto":
            return self.layout == "chw"
        if layout != "auto":
            return layout == "chw"
        first, _, last = self.values.shape
        if channels is None:
            return first < last
        if (first == channels) == (last == channels):
            both = "both the first and the last axis" if first == channels else "no outer axis"
            raise UserError(
                f"has the shape {self.values.shape}, of which {both} may be {channels} channels; "
                "say which it is: --layout hwc or --layout chw, and --channels"
            )
        return first == channels

    def interleaved(
        self, channels: int | None, layout: Layout = "auto"
    ) -> Shaped[np.ndarray, "h w c"]:
        if self.values.ndim == 2:
            return self.values[..., None]
        first = self.channels_first(channels, layout)
        return np.moveaxis(self.values, 0, -1) if first else self.values


def read_raster(path: Source) -> Raster | None:
    """None: it is for Pillow.

    Raises:
        UnusableImage: it is of a kind that is not read.
        MissingLibrary: for this kind.
        Others, of the reading libraries: it is damaged.
    """
    with path.open("rb") as file:
        head = file.read(26)
        deep = head.startswith(PNG) and len(head) == 26 and head[24] == 16  # its bit depth
        if not deep and not head.startswith((NPY, *TIFF)):
            return None
        content = head + file.read()
    if deep:
        return read_deep_png(content, path, gray=head[25] == 0)  # its kind of color
    return (read_npy if head.startswith(NPY) else read_deep_tiff)(content, path)


def read_npy(content: bytes, path: Source) -> Raster:
    values = native(np.load(BytesIO(content), allow_pickle=False))
    if values.dtype.name not in INTEGERS + FLOATS or values.ndim not in (2, 3) or not values.size:
        raise UnusableImage(
            path,
            f"is an array of {values.dtype.name} and shape {values.shape}; needed are real numbers "
            "of shape (h, w), (h, w, c) or (c, h, w)",
        )
    return Raster(values, "auto")


def read_deep_png(content: bytes, path: Source, gray: bool) -> Raster:
    with Image.open(BytesIO(content), formats=("PNG",)) as image:
        orientation = image.getexif().get(ORIENTATION, 1)
        if gray:
            return Raster(upright(np.asarray(image), orientation), color=True)
    imagecodecs = library("imagecodecs", path, "16-bit PNG in color")
    try:
        values = imagecodecs.png_decode(content)
    except imagecodecs.PngError as error:
        raise UnusableImage(path, f"cannot be read: {error}") from error
    return Raster(upright(values, orientation), color=True, alpha=values.shape[2] in (2, 4))


def read_deep_tiff(content: bytes, path: Source) -> Raster | None:
    try:
        with Image.open(BytesIO(content), formats=("TIFF",)) as image:
            bits = max(image.tag_v2.get(BITS_PER_SAMPLE, (1,)))
            samples = image.tag_v2.get(SAMPLES_PER_PIXEL, 1)
            whole = samples == 1 or (len(image.getbands()) > 1 and samples <= 4)
            if bits <= 8 and image.mode in EIGHT_BITS and whole:
                return None
            if image.mode in SIXTEEN_BITS and whole and image.n_frames == 1:
                return Raster(native(np.asarray(image)), color=True)  # turned upright by Pillow
    except Image.UnidentifiedImageError:
        pass  # more than four channels, for one
    tifffile = library("tifffile", path, "TIFF of this kind")
    try:
        with tifffile.TiffFile(BytesIO(content)) as file:
            return tiff_raster(file, path)
    except (tifffile.TiffFileError, IndexError) as error:
        raise UnusableImage(path, f"cannot be read: {error}") from error


def tiff_raster(file: Any, path: Source) -> Raster:
    """file: an open TiffFile."""
    series, page = file.series[0], file.pages[0]
    if series.axes not in ("YX", "YXS", "SYX", "CYX", "YXC"):
        raise UnusableImage(
            path,
            f"has the axes {series.axes} of lengths {series.shape}, and only rows, columns and "
            "channels make one image. Save the channels as samples of one page, or as .npy",
        )
    if series.dtype.name not in INTEGERS + FLOATS:
        raise UnusableImage(path, f"holds numbers of type {series.dtype.name}, which are no pixels")
    values = native(series.asarray())
    first = series.axes in ("SYX", "CYX")
    values = np.moveaxis(values, 0, -1) if first else values
    if opacity(page) == 1:
        values = divided(values)
    turned = page.tags.get(ORIENTATION)
    gray = values.ndim == 2 or values.shape[2] - bool(opacity(page)) == 1
    return Raster(
        upright(values, turned.value if turned else 1),
        color=page.photometric.name == "RGB" or (page.photometric.name == "MINISBLACK" and gray),
        alpha=bool(opacity(page)) and "S" in series.axes,
    )


def opacity(page: Any) -> int:
    """What a page's last sample is: 2 alpha, 1 alpha that the colors are multiplied by, 0 none."""
    last = page.extrasamples[-1] if page.extrasamples else 0
    return int(last) if last in (1, 2) else 0


def divided(values: Shaped[np.ndarray, "h w c"]) -> Shaped[np.ndarray, "h w c"]:
    """Colors that were multiplied by the last channel, as they were before."""
    share = values[..., -1:] / full_of(values.dtype)
    color = values[..., :-1] / np.where(share == 0, 1, share)
    return np.concatenate([as_type(color, values.dtype), values[..., -1:]], axis=2)


def native(values: Shaped[np.ndarray, "..."]) -> Shaped[np.ndarray, "..."]:
    """In the byte order of this machine."""
    return values.astype(values.dtype.newbyteorder("="))


def upright(values: Shaped[np.ndarray, "..."], orientation: int) -> Shaped[np.ndarray, "..."]:
    """(h, w) or (h, w, c), turned as EXIF asks for."""
    if orientation >= 5:
        values = values.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        values = values[::-1]
    return values[:, ::-1] if orientation in (2, 3, 6, 7) else values


def library(name: str, path: Source, what: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise MissingLibrary(
            f"{path}: to read {what}, {name} is needed, which is not installed. "
            "Run: pip install tifffile imagecodecs"
        ) from error


def to_channels(
    raster: Raster, channels: int, layout: Layout, background: tuple[int, int, int]
) -> Shaped[np.ndarray, "h w {channels}"]:
    """As many channels as asked for. What is no picture must have them already.

    background: RGB, 0 to 255, seen through transparent pixels.
    """
    values = raster.interleaved(channels if not raster.color else None, layout)
    color = values[..., :-1] if raster.alpha else values
    if not raster.color or color.shape[2] not in (1, 3) or channels not in (1, 3, 4):
        if values.shape[2] != channels:
            raise UserError(
                f"has {values.shape[2]} channels, and {channels} are asked for; use "
                f"--channels {values.shape[2]}, or leave the file out"
            )
        return values
    full = full_of(values.dtype)
    if channels == 4:
        opaque = (
            values[..., -1:]
            if raster.alpha
            else np.full_like(values[..., :1], int(full) if full > 1 else full)
        )
        return np.concatenate([rgb(color), opaque], axis=2)
    if raster.alpha:
        share = values[..., -1:] / full
        below = np.array(background) * (full / 255)
        color = as_type(rgb(color) * share + below * (1 - share), values.dtype)
    if channels == 3:
        return rgb(color)
    return (
        color if color.shape[2] == 1 else as_type(color @ np.array(LUMA), values.dtype)[..., None]
    )


def rgb(color: Shaped[np.ndarray, "h w _"]) -> Shaped[np.ndarray, "h w 3"]:
    return np.broadcast_to(color, (*color.shape[:2], 3))


def full_of(dtype: np.dtype) -> float:
    """White, or opaque, in a picture of such numbers."""
    return float(np.iinfo(dtype).max) if dtype.kind in "iu" else 1.0


def as_type(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        values = values.round().clip(limits.min, limits.max)
    return values.astype(dtype)
