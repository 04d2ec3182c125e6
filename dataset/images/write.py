"""Writing images in [-1, 1] to files with numbers like those of the training files.

.png   8 or 16 bits; gray, RGB or RGBA
.tif   any type, any number of channels; needs tifffile, of the extra `deep`
.npy   the same, as (h, w, c), or (c, h, w) where that is the stated layout; texts go into a .json
       file with the same name
"""

import errno
import json
import os
import re
import secrets
import time
from collections.abc import Mapping
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Shaped, UInt8, UInt16
from PIL import Image, PngImagePlugin
from torch import Tensor

from dataset.images.pixel_format import PixelFormat
from dataset.images.rasters import import_library
from foundation.errors import NotFiniteError, UserError
from foundation.files import NO_HARD_LINKS, naming, remove, rename, sync_names, to_json

EXTENSIONS = (".png", ".tif", ".npy")
COLOR_16 = "16-bit PNG in color"
# Hidden files that `write_new_files` makes, and those of `foundation.files.atomic_file` for images.
LEFTOVER = re.compile(r"\..+\.\w+(\.[0-9a-f]{8}|\.claim)?\.partial")
AN_HOUR = 3600  # seconds; to write an image takes less than one
HEADER_END = 8 + 25  # bytes of a PNG: its signature and its first chunk, the header


def choose_extension(pixels: PixelFormat, channels: int, requested: str = "") -> str:
    """Return the extension of files for such images.

    requested: this extension, if it can hold the images; "": .png if it can hold them, else .npy.

    Raises:
        UserError: the requested one is unknown, or cannot hold the images.
        MissingLibrary: imagecodecs is needed and not installed. Raised here, before any image
            is computed.
    """
    # Two channels of a model are not gray and alpha, so they do not make a PNG.
    png = pixels.dtype in ("uint8", "uint16") and channels in (1, 3, 4)
    extension = requested or (".png" if png else ".npy")
    if extension not in EXTENSIONS:
        raise UserError(f"images are written as {', '.join(EXTENSIONS)}, not as {requested}.")
    if extension == ".png" and not png:
        raise UserError(
            f"a PNG holds 8 or 16 bits of gray, RGB or RGBA; the images of this model are "
            f"{channels} channels of {pixels.dtype}. Use .npy or .tif."
        )
    if extension == ".png" and pixels.dtype == "uint16" and channels > 1:
        import_library("imagecodecs", Path("the images"), COLOR_16)
    return extension


def write_image(
    image: Float[Tensor, "c h w"],
    path: Path,
    pixels: PixelFormat,
    texts: Mapping[str, str] | None = None,
) -> Path:
    """Write one image in [-1, 1]; values outside are clamped. The extension chooses the file type.

    texts: by name, to be stored with the image.

    Raises:
        FileExistsError: there is a file already.
        UserError: this type of file cannot hold the image.
        NotFiniteError: the image has infinite values or NaN.
    """
    write_new_files(encode_files(image, path, pixels, texts))
    return path


def encode_files(
    image: Float[Tensor, "c h w"],
    path: Path,
    pixels: PixelFormat,
    texts: Mapping[str, str] | None = None,
) -> dict[Path, bytes]:
    """Return the contents of the files that hold one image, as `write_image` writes them.

    The file of the image is the last one.
    """
    if not image.isfinite().all():
        raise NotFiniteError(f"{path}: the image has values that are not finite.")
    extension, texts = path.suffix, texts or {}
    choose_extension(pixels, len(image), extension)
    values = np.moveaxis(pixels.restore(image), 0, -1)
    files: dict[Path, bytes] = {}
    if extension == ".png":
        content = encode_png(values, texts, path)
    elif extension == ".tif":
        content = encode_tiff(values, texts, path)
    else:
        content = encode_npy(np.moveaxis(values, -1, 0) if pixels.layout == "chw" else values)
        if texts:
            files[path.with_suffix(".json")] = to_json(texts).encode()
    return {**files, path: content}


def write_new_files(contents: Mapping[Path, bytes]) -> None:
    """Write files of one folder, which appear whole or not at all, and never replace another file.

    After an error none of them is there. They appear in their order: of an image and its companions
    the image comes last, so that where it is, everything is. A kill may leave hidden files, see
    `remove_leftovers`.

    Raises:
        FileExistsError: one of them is there already; it names the file.
    """
    token = secrets.token_hex(4)  # other processes may write files of the same names
    partials = {path: path.with_name(f".{path.name}.{token}.partial") for path in contents}
    appeared: list[Path] = []
    try:
        for path, content in contents.items():
            with naming(path), partials[path].open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        for path, partial in partials.items():
            rename_new(partial, path)
            appeared.append(path)
        for folder in {path.parent for path in contents}:
            with naming(folder):
                sync_names(folder)
    except BaseException:
        for path in appeared:
            path.unlink(missing_ok=True)
        raise
    finally:
        for partial in partials.values():
            remove(partial)


def rename_new(partial: Path, path: Path) -> None:
    """Give a complete file its name, unless something has that name."""
    try:
        with naming(path):
            os.link(partial, path)  # fails where a rename would replace
    except OSError as error:
        if error.errno not in NO_HARD_LINKS:
            raise
        rename_alone(partial, path)


def rename_alone(partial: Path, path: Path) -> None:
    """Do it where there are no hard links; a hidden file tells other processes that it happens."""
    claim = path.with_name(f".{path.name}.claim.partial")
    with naming(path):
        claim.open("xb").close()
        try:
            if os.path.lexists(path):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
            rename(partial, path)
        finally:
            remove(claim)


def remove_leftovers(folder: Path) -> None:
    """Remove hidden files that a killed process has left of images an hour ago or earlier."""
    for file in folder.glob(".*.partial"):
        with suppress(OSError):  # another process removes it, or it is not ours
            if LEFTOVER.fullmatch(file.name) and time.time() - file.stat().st_mtime > AN_HOUR:
                file.unlink()


def encode_png(
    values: UInt8[np.ndarray, "h w c"] | UInt16[np.ndarray, "h w c"],
    texts: Mapping[str, str] | None = None,
    path: Path = Path("an image"),
) -> bytes:
    """Encode gray (1 channel), gray with alpha (2), RGB (3) or RGBA (4) as PNG, with text chunks.

    Pillow writes all of them but 16-bit color, for which imagecodecs is needed.

    path: of the file that is written, for the message if imagecodecs is missing.
    """
    info = PngImagePlugin.PngInfo()
    for name, text in (texts or {}).items():
        info.add_itxt(name, text)
    channels = values.shape[2]
    out = BytesIO()
    if values.dtype == np.uint8 or channels == 1:
        image = Image.fromarray(values[..., 0] if channels == 1 else values)
        image.save(out, "PNG", pnginfo=info)
        return out.getvalue()
    imagecodecs = import_library("imagecodecs", path, COLOR_16)
    content = imagecodecs.png_encode(np.ascontiguousarray(values))
    for name, data, *_ in info.chunks:
        PngImagePlugin.putchunk(out, name, data)
    return content[:HEADER_END] + out.getvalue() + content[HEADER_END:]


def encode_tiff(values: Shaped[np.ndarray, "h w c"], texts: Mapping[str, str], path: Path) -> bytes:
    """Encode as TIFF; texts become a JSON description, in ASCII, as the format demands."""
    tifffile = import_library("tifffile", path, "TIFF")
    channels = values.shape[2]
    options: dict[str, Any] = {"photometric": "rgb" if channels in (3, 4) else "minisblack"}
    if channels > 1:
        options["planarconfig"] = "contig"
    if channels == 4:
        options["extrasamples"] = ["unassalpha"]
    description = json.dumps(dict(texts)) if texts else None
    out = BytesIO()
    values = values[..., 0] if channels == 1 else values
    tifffile.imwrite(out, values, description=description, metadata=None, **options)
    return out.getvalue()


def encode_npy(values: Shaped[np.ndarray, "..."]) -> bytes:
    """Encode as the content of a .npy file."""
    out = BytesIO()
    np.save(out, np.ascontiguousarray(values), allow_pickle=False)
    return out.getvalue()
