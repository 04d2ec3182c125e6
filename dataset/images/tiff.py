"""TIFF files: Pillow reads 8-bit pictures and 16-bit gray, tifffile everything else.

tifffile uses imagecodecs for compressions such as LZW. A TIFF of several pages is one image only if
its metadata says that the pages are channels.
"""

from io import BytesIO

import numpy as np
from jaxtyping import Shaped
from PIL import Image
from PIL.TiffImagePlugin import COMPRESSION_INFO

from dataset.images import tiff_header as tags
from dataset.images.limits import check_size
from dataset.images.rasters import Raster, import_library, in_bands, to_dtype, to_native, white
from dataset.images.tiff_header import TiffHeader
from dataset.source import MissingLibrary, UnusableImage

PREMULTIPLIED, STRAIGHT, COREL = 1, 2, 999  # codes for kinds of alpha; Corel Draw has its own
NO_ALPHA = -1
PICTURES = {  # kinds of color and channels of 8-bit pictures that Pillow reads -> kinds of alpha
    (tags.WHITE_IS_ZERO, 1): (NO_ALPHA,),
    (tags.BLACK_IS_ZERO, 1): (NO_ALPHA,),
    (tags.BLACK_IS_ZERO, 2): (STRAIGHT,),
    (tags.RGB, 3): (NO_ALPHA,),
    (tags.RGB, 4): (NO_ALPHA, PREMULTIPLIED, STRAIGHT, COREL),  # files without a code mean alpha
    (tags.PALETTE, 1): (NO_ALPHA,),
    (tags.PALETTE, 2): (STRAIGHT,),
    (tags.SEPARATED, 4): (NO_ALPHA,),
    (tags.YCBCR, 3): (NO_ALPHA,),
}
# Compressions that only pack bytes. Others hold a picture with a header of its own, which could
# claim any size.
PACKED = {1: "none", 5: "LZW", 8: "Deflate", 32946: "Deflate", 32773: "PackBits"}
PACKED |= {34925: "LZMA", 34926: "Zstandard", 50000: "Zstandard"}


def is_picture(header: TiffHeader) -> bool:
    """Return whether Pillow reads the file as an 8-bit picture, with all its channels."""
    return (
        header.pages == 1
        and header.dtype in ("uint1", "uint2", "uint4", "uint8")
        and header.get(tags.COMPRESSION, 1) in COMPRESSION_INFO
        and header.alpha in PICTURES.get((header.photometric, header.samples), ())
    )


def read_deep_tiff(header: TiffHeader) -> Raster:
    """Read a TIFF that has passed `judge_header` and is no 8-bit picture.

    Raises:
        UnusableImage: it has several pages, or is compressed in a way that is not read.
        MissingLibrary: tifffile is needed.
    """
    if header.pages > 1:
        return read_channel_pages(header)
    if header.photometric not in (tags.WHITE_IS_ZERO, tags.BLACK_IS_ZERO, tags.RGB):
        raise UnusableImage(
            header.path,
            f"holds colors of kind {header.photometric} as {header.samples} channels of "
            f"{header.dtype}, which is not read; convert it to RGB",
        )
    values = read_deep_gray(header) if is_deep_gray(header) else read_packed(header)
    if header.photometric == tags.WHITE_IS_ZERO:
        values = invert(values, header)
    if header.alpha == PREMULTIPLIED:
        values = in_bands(unpremultiply, values)
    has_alpha = header.alpha in (PREMULTIPLIED, STRAIGHT)
    gray = header.samples - has_alpha == 1
    return Raster(values, color=header.photometric == tags.RGB or gray, alpha=has_alpha)


def is_deep_gray(header: TiffHeader) -> bool:
    """Return whether Pillow reads the file as 16-bit gray."""
    big_endian_white = header.order == ">" and header.photometric == tags.WHITE_IS_ZERO
    return (
        header.dtype == "uint16"
        and header.samples == 1
        and header.get(tags.FILL_ORDER, 1) == 1
        and header.get(tags.COMPRESSION, 1) in COMPRESSION_INFO
        and not big_endian_white
    )


def read_deep_gray(header: TiffHeader) -> Shaped[np.ndarray, "h w"]:
    with Image.open(BytesIO(header.structure()), formats=("TIFF",)) as image:
        return to_native(np.asarray(image))


def read_packed(header: TiffHeader) -> Shaped[np.ndarray, "..."]:
    """Read the first page by tifffile."""
    check_packing(header)
    tifffile = import_library("tifffile", header.path, "TIFF of this kind")
    with tifffile.TiffFile(BytesIO(header.structure())) as file:
        page = file.pages[0]
        values = to_native(page.asarray(maxworkers=1))
        axes = page.axes
    return check_axes(values, axes, header)


def check_packing(header: TiffHeader) -> None:
    """Refuse compressions that hold a picture with a header of its own."""
    compression = header.get(tags.COMPRESSION, 1)
    if compression not in PACKED:
        raise UnusableImage(
            header.path,
            f"holds {header.samples} channels of {header.dtype} in compression {compression}; for "
            f"these are read: {', '.join(dict.fromkeys(PACKED.values()))}. Save it again",
        )


def check_axes(
    values: Shaped[np.ndarray, "..."], axes: str, header: TiffHeader
) -> Shaped[np.ndarray, "..."]:
    """Bring the channels of a page to the end; the shape must be what the header promises."""
    if axes == "SYX":
        values = np.moveaxis(values, 0, -1)
    width, height = header.size
    expected = (height, width) if header.samples == 1 else (height, width, header.samples)
    if values.shape != expected or values.dtype.name != header.dtype:
        raise UnusableImage(
            header.path,
            f"is damaged: {header.dtype} of shape {expected} turned out to be {values.dtype.name} "
            f"of shape {values.shape}",
        )
    return values


def read_channel_pages(header: TiffHeader) -> Raster:
    """Read a file of several pages that are declared to be channels."""
    (width, height), path = header.size, header.path
    refusal = UnusableImage(
        path,
        f"has {header.pages} pages; an image has one. Save the page that is meant as a file of its "
        "own, or channels as samples of one page or as .npy",
    )
    check_size(path, width, height, header.pages * header.samples, max(1, header.bits // 8))
    declared = header.samples == 1 and header.photometric == tags.BLACK_IS_ZERO and header.bits >= 8
    if not declared or header.get(tags.COMPRESSION, 1) not in PACKED:
        raise refusal
    try:
        tifffile = import_library("tifffile", path, "TIFF of several pages")
    except MissingLibrary:
        raise refusal from None
    # Without _multifile, OME metadata could name other files, which would be opened.
    with tifffile.TiffFile(BytesIO(header.content), _multifile=False) as file:
        series = file.series[0]
        if series.axes != "CYX" or series.shape != (header.pages, height, width):
            raise refusal
        if series.dtype.name != header.dtype:
            raise refusal
        return Raster(np.moveaxis(to_native(series.asarray(maxworkers=1)), 0, -1))


def invert(values: Shaped[np.ndarray, "..."], header: TiffHeader) -> Shaped[np.ndarray, "..."]:
    """Exchange black and white in all channels but alpha."""
    if header.alpha == NO_ALPHA:
        return np.invert(values)
    return np.concatenate([np.invert(values[..., :1]), values[..., 1:]], axis=2)


def unpremultiply(values: Shaped[np.ndarray, "h w c"]) -> Shaped[np.ndarray, "h w c"]:
    """Divide the colors by alpha, the last channel, by which they have been multiplied."""
    opacity = values[..., -1:] / white(values.dtype)
    color = values[..., :-1] / np.where(opacity == 0, 1, opacity)
    return np.concatenate([to_dtype(color, values.dtype), values[..., -1:]], axis=2)
