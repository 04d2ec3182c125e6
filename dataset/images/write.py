"""Images in [-1, 1] -> files with the numbers that the training files had, in their own range.

.png   8 or 16 bits; gray, RGB or RGBA. Pillow writes no 16-bit color, so it is done here
.tif   any type, any number of channels; tifffile, of the extra `deep`
.npy   the same as (h, w, c), or (c, h, w) where that is the stated layout; a .json beside it
       says how it was made
"""

import json
import struct
import zlib
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path

import numpy as np
from jaxtyping import Float, Shaped, UInt8, UInt16
from torch import Tensor

from dataset.images.pixel_format import PixelFormat
from dataset.images.rasters import PNG, library
from foundation.errors import NotFiniteError, UserError

ENDINGS = (".png", ".tif", ".npy")
COLOR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}  # of PNG, by channels
UP = 2  # PNG's filter that stores the difference to the row above


def file_ending(pixels: PixelFormat, channels: int, asked: str = "") -> str:
    """Of the files for such images: the one asked for, or else .png if it holds them, or .npy."""
    png = pixels.dtype in ("uint8", "uint16") and channels in (
        1,
        3,
        4,
    )  # two are not gray and alpha
    if not asked:
        return ".png" if png else ".npy"
    if asked not in ENDINGS:
        raise UserError(f"images are written as {', '.join(ENDINGS)}, not as {asked}.")
    if asked == ".png" and not png:
        raise UserError(
            f"a PNG holds 8 or 16 bits of gray, RGB or RGBA; the images of this model are "
            f"{channels} channels of {pixels.dtype}. Use .npy or .tif."
        )
    return asked


def to_file(
    image: Float[Tensor, "c h w"],
    path: Path,
    pixels: PixelFormat,
    made_by: Mapping[str, str] | None = None,
) -> Path:
    """Writes one image in [-1, 1]; what lies outside is clamped. The path's ending says the kind.

    made_by: texts by name that are kept with it.

    Raises:
        FileExistsError: there is a file already.
        ValueError: this kind cannot hold it.
        FloatingPointError: a value is not finite.
    """
    if not image.isfinite().all():
        raise NotFiniteError(f"{path}: the image has values that are not finite.")
    ending, made_by = path.suffix, made_by or {}
    file_ending(pixels, len(image), ending)
    values = np.moveaxis(pixels.restore(image), 0, -1)
    if ending == ".png":
        content = png_bytes(values, made_by)
    elif ending == ".tif":
        content = tiff_bytes(values, made_by, path)
    else:
        content = npy_bytes(np.moveaxis(values, -1, 0) if pixels.layout == "chw" else values)
    write_new(path, content)
    if ending == ".npy" and made_by:
        text = json.dumps(made_by, indent=2, ensure_ascii=False) + "\n"
        path.with_suffix(".json").write_text(text, encoding="utf-8")
    return path


def write_new(path: Path, content: bytes) -> None:
    """Whole or not at all, and never over another file."""
    with path.open("xb") as file:
        try:
            file.write(content)
            file.flush()
        except OSError:  # a full disk
            path.unlink()
            raise


def png_bytes(
    values: UInt8[np.ndarray, "h w c"] | UInt16[np.ndarray, "h w c"],
    texts: Mapping[str, str] | None = None,
) -> bytes:
    """A PNG of gray (1 channel), with alpha (2), RGB (3) or RGBA (4), as ISO 15948 has it."""
    height, width, channels = values.shape
    bits = 8 * values.dtype.itemsize
    head = struct.pack(">IIBBBBB", width, height, bits, COLOR_TYPES[channels], 0, 0, 0)
    rows = values.astype(values.dtype.newbyteorder(">")).reshape(height, -1).view(np.uint8)
    rows = np.vstack([rows[:1], rows[1:] - rows[:-1]])  # modulo 256
    rows = np.hstack([np.full((height, 1), UP, np.uint8), rows])
    notes = [(name, text) for name, text in (texts or {}).items()]
    chunks = [
        (b"IHDR", head),
        *((b"iTXt", name.encode("latin-1") + bytes(5) + text.encode()) for name, text in notes),
        (b"IDAT", zlib.compress(rows.tobytes())),
        (b"IEND", b""),
    ]
    return PNG + b"".join(chunk(name, content) for name, content in chunks)


def chunk(name: bytes, content: bytes) -> bytes:
    ends = struct.pack(">I", len(content)), struct.pack(">I", zlib.crc32(name + content))
    return ends[0] + name + content + ends[1]


def tiff_bytes(values: Shaped[np.ndarray, "h w c"], texts: Mapping[str, str], path: Path) -> bytes:
    tifffile = library("tifffile", path, "TIFF")
    channels = values.shape[2]
    options = {"photometric": "rgb" if channels in (3, 4) else "minisblack"}
    if channels > 1:
        options["planarconfig"] = "contig"
    if channels == 4:
        options["extrasamples"] = ["unassalpha"]
    description = json.dumps(dict(texts)) if texts else None  # ASCII, as TIFF wants it
    out = BytesIO()
    values = values[..., 0] if channels == 1 else values
    tifffile.imwrite(out, values, description=description, metadata=None, **options)
    return out.getvalue()


def npy_bytes(values: Shaped[np.ndarray, "..."]) -> bytes:
    out = BytesIO()
    np.save(out, np.ascontiguousarray(values), allow_pickle=False)
    return out.getvalue()
