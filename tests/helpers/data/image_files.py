"""A small valid file of every format and variant that is read, as bytes, to be read or damaged."""

import struct
import zlib
from collections.abc import Mapping
from functools import cache
from io import BytesIO
from typing import Any

import imagecodecs
import numpy as np
import tifffile
from PIL import Image

SIDES = (11, 7)  # width, height: odd, so that rows end within a byte

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def values(*channels: int, dtype: str = "uint8", seed: int = 0) -> np.ndarray:
    """Draw numbers of the whole range of an integer type, or in [0, 1)."""
    rng, shape = np.random.default_rng(seed), (SIDES[1], SIDES[0], *channels)
    if np.dtype(dtype).kind == "f":
        return rng.random(shape).astype(dtype)
    limits = np.iinfo(dtype)
    return rng.integers(limits.min, limits.max, shape, dtype, endpoint=True)


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    """Return the file that Pillow writes."""
    out = BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def tiff(array: np.ndarray, **options: Any) -> bytes:
    """Return the file that tifffile writes."""
    out = BytesIO()
    tifffile.imwrite(out, array, **{"metadata": None, **options})
    return out.getvalue()


def npy(array: np.ndarray) -> bytes:
    out = BytesIO()
    np.save(out, array)
    return out.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    """Return a chunk of a PNG with the right checksum."""
    return struct.pack(">I", len(data)) + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")


def png(
    array: np.ndarray, bits: int, color: int, *extra: bytes, sides: tuple[int, int] = SIDES
) -> bytes:
    """Return a PNG with chunks of one's own before the pixels. array: (h, w, c) or packed rows."""
    header = struct.pack(">IIBBBBB", *sides, bits, color, 0, 0, 0)
    order = array.astype(">u2") if array.dtype == np.uint16 else array
    rows = zlib.compress(b"".join(b"\0" + row.tobytes() for row in order))
    chunks = [chunk(b"IHDR", header), *extra, chunk(b"IDAT", rows), chunk(b"IEND", b"")]
    return PNG_SIGNATURE + b"".join(chunks)


def exif(orientation: Any = 6) -> bytes:
    content = Image.Exif()
    content[0x0112] = orientation
    return content.tobytes()


@cache
def good_files() -> Mapping[str, bytes]:
    """Return name with its ending -> content, of files that are all read."""
    return {**pngs(), **other_pictures(), **tiffs_of_pillow(), **tiffs_of_tifffile(), **arrays()}


def pngs() -> dict[str, bytes]:
    rgb, rgba = Image.fromarray(values(3)), Image.fromarray(values(4))
    packed = np.arange(7 * 6, dtype=np.uint8).reshape(7, 6) * 6
    deep, palette = values(3, dtype="uint16"), chunk(b"PLTE", bytes(range(48)))
    frames = [Image.fromarray(values(3, seed=k)) for k in range(3)]
    text = chunk(b"zTXt", b"note\0\0" + zlib.compress(b"a note")) + chunk(b"tEXt", b"a\0b")
    return {
        "rgb.png": saved(rgb, "PNG", exif=exif()),
        "rgba.png": saved(rgba, "PNG"),
        "gray.png": saved(rgb.convert("L"), "PNG"),
        "gray-alpha.png": saved(rgb.convert("LA"), "PNG"),
        "one-bit.png": saved(rgb.convert("1"), "PNG"),
        "palette.png": saved(rgb.quantize(9), "PNG"),
        "transparent-palette.png": saved(rgb.quantize(9), "PNG", transparency=b"\0\x80\xff"),
        "four-bit.png": png(packed, 4, 0, chunk(b"tRNS", b"\0\x03")),
        "four-bit-palette.png": png(packed, 4, 3, palette),
        "transparent-color.png": png(values(3), 8, 2, chunk(b"tRNS", bytes(6))),
        "texts.png": png(values(3), 8, 2, text),
        "deep-gray.png": png(values(1, dtype="uint16"), 16, 0),
        "deep-gray-transparent.png": png(values(1, dtype="uint16"), 16, 0, chunk(b"tRNS", b"\1\2")),
        "deep-gray-alpha.png": png(values(2, dtype="uint16"), 16, 4),
        "deep-rgb.png": png(deep, 16, 2, chunk(b"tRNS", bytes(6)), chunk(b"eXIf", exif())),
        "deep-rgba.png": png(values(4, dtype="uint16"), 16, 6),
        "other-writer.png": bytes(imagecodecs.png_encode(deep)),
        "film.apng": saved(frames[0], "PNG", save_all=True, append_images=frames[1:]),
    }


def other_pictures() -> dict[str, bytes]:
    rgb, rgba = Image.fromarray(values(3)), Image.fromarray(values(4))
    frames = [Image.fromarray(values(3, seed=k)) for k in range(3)]
    film = {"save_all": True, "append_images": frames[1:]}
    bmp = saved(rgb, "BMP")
    return {
        "baseline.jpg": saved(rgb, "JPEG", exif=exif(), comment=b"a comment"),
        "progressive.jpeg": saved(rgb, "JPEG", progressive=True),
        "gray.jfif": saved(rgb.convert("L"), "JPEG"),
        "cmyk.jpe": saved(rgb.convert("CMYK"), "JPEG"),
        "restarts.jif": saved(rgb, "JPEG", restart_marker_blocks=1, subsampling=0),
        "two.mpo": saved(rgb, "MPO", save_all=True, append_images=[frames[1]]),
        "lossy.webp": saved(rgb, "WEBP", exif=exif(), icc_profile=b"profile"),
        "lossless.webp": saved(rgba, "WEBP", lossless=True),
        "lossy-alpha.webp": saved(rgba, "WEBP"),
        "film.webp": saved(frames[0], "WEBP", **film),
        "one.gif": saved(rgb.quantize(9), "GIF", comment=b"a comment"),
        "film.gif": saved(frames[0], "GIF", **film),
        "transparent.gif": saved(rgb.quantize(9), "GIF", transparency=3),
        "rgb.bmp": bmp,
        "rgba.bmp": saved(rgba, "BMP"),
        "palette.bmp": saved(rgb.quantize(9), "BMP"),
        "one-bit.bmp": saved(rgb.convert("1"), "BMP"),
        "bare.dib": bmp[14:],
    }


def tiffs_of_pillow() -> dict[str, bytes]:
    """Return 8-bit pictures, in the compressions that Pillow writes."""
    rgb, rgba = Image.fromarray(values(3)), Image.fromarray(values(4))
    files = {
        f"{name}.tif": saved(rgb, "TIFF", compression=name)
        for name in ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg", "lzma", "zstd")
    }
    return files | {
        "rgba.tif": saved(rgba, "TIFF"),
        "gray-alpha.tif": saved(rgba.convert("LA"), "TIFF"),
        "palette.tif": saved(rgb.quantize(9), "TIFF"),
        "cmyk.tif": saved(rgb.convert("CMYK"), "TIFF"),
        "ycbcr-lzw.tif": saved(rgb.convert("YCbCr"), "TIFF", compression="tiff_lzw"),
        "group4.tif": saved(rgb.convert("1"), "TIFF", compression="group4"),
        "group3.tif": saved(rgb.convert("1"), "TIFF", compression="group3"),
        "one-bit.tif": saved(rgb.convert("1"), "TIFF"),
        "big.tif": saved(rgb, "TIFF", big_tiff=True),
        "turned.tif": saved(rgb, "TIFF", tiffinfo={0x0112: 6}),
    }


def tiffs_of_tifffile() -> dict[str, bytes]:
    deep, shallow = values(3, dtype="uint16"), values(3)
    rgb: dict[str, Any] = {"photometric": "rgb"}
    files = {
        f"{dtype}.tif": tiff(values(dtype=dtype), photometric="minisblack", compression=packing)
        for dtype, packing in (
            *(("int8", "zlib"), ("int16", None), ("uint16", "lzw"), ("uint32", None)),
            *(("float16", None), ("float32", "zstd"), ("float64", "packbits"), ("int64", "lzma")),
        )
    }
    planes = np.moveaxis(deep, -1, 0)
    pages = np.moveaxis(values(5, dtype="uint16"), -1, 0)
    return files | {
        "white.tif": tiff(values(), photometric="miniswhite"),
        "deep-white.tif": tiff(values(dtype="uint16"), photometric="miniswhite"),
        "deep-white-big-endian.tif": tiff(
            values(dtype="uint16"), photometric="miniswhite", byteorder=">"
        ),
        "deep-rgb.tif": tiff(deep, compression="lzw", predictor=True, **rgb),
        "deep-planes.tif": tiff(planes, planarconfig="separate", compression="zlib", **rgb),
        "planes.tif": tiff(np.moveaxis(shallow, -1, 0), planarconfig="separate", **rgb),
        "deep-tiles.tif": tiff(deep, tile=(16, 16), **rgb),
        "tiles.tif": tiff(shallow, tile=(16, 16), compression="zlib", **rgb),
        "strips.tif": tiff(shallow, rowsperstrip=2, byteorder=">", **rgb),
        "deep-rgba.tif": tiff(
            values(4, dtype="uint16"), extrasamples=["unassalpha"], bigtiff=True, **rgb
        ),
        "deep-premultiplied.tif": tiff(
            values(4, dtype="uint16"), extrasamples=["assocalpha"], **rgb
        ),
        "gray-premultiplied.tif": tiff(
            values(2), photometric="minisblack", planarconfig="contig", extrasamples=["assocalpha"]
        ),
        "infrared.tif": tiff(values(4), extrasamples=["unspecified"], **rgb),
        "five.tif": tiff(values(5), photometric="minisblack", planarconfig="contig"),
        "float-predictor.tif": tiff(
            values(3, dtype="float32"), compression="zlib", predictor=3, **rgb
        ),
        "pages.tif": tiff(pages, imagej=True, metadata={"axes": "CYX"}),
    }


def arrays() -> dict[str, bytes]:
    return {
        "gray.npy": npy(values()),
        "five.npy": npy(values(5, dtype="uint16")),
        "planes.npy": npy(np.moveaxis(values(3, dtype="float32"), -1, 0)),
        "big-endian.npy": npy(values(dtype="uint16").astype(">u2")),
        "columns.npy": npy(np.asfortranarray(values(3, dtype="int16"))),
        "double.npy": npy(values(3, dtype="float64")),
    }
