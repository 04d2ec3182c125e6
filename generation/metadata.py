"""How a picture was made, inside its file: once for people, once for programs.

PNG           the text chunks `parameters`, which viewers show, and `latentsmith`, JSON
JPEG, WebP    the EXIF tags XPComment, which viewers show, and UserComment, JSON
GIF           the comment, JSON
NPY           a .json of the same name, as `dataset.images.write` has it
MP4           the metadata `parameters` and `latentsmith`, as of a PNG
"""

import json
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from types import ModuleType
from typing import Any

from PIL import ExifTags, Image
from PIL.PngImagePlugin import PngInfo

from dataset.images.transform import load_image
from foundation.errors import UserError
from foundation.files import read_json

FORMATS = {"png": "PNG", "jpeg": "JPEG", "webp": "WEBP"}  # and Pillow's names
SUFFIXES = {"png": ".png", "jpeg": ".jpg", "webp": ".webp", "gif": ".gif", "mp4": ".mp4"}
XP_COMMENT, USER_COMMENT = 0x9C9C, 0x9286
UNICODE = b"UNICODE\0"  # how UserComment says that UTF-16 follows


def encoded(
    picture: Image.Image, record: Mapping[str, Any], kind: str = "png", quality: int = 95
) -> bytes:
    """The file's content. record: may be empty, for a grid. quality: of JPEG and WebP, 1 to 100."""
    buffer = BytesIO()
    if kind == "png":
        picture.save(buffer, "PNG", pnginfo=text_chunks(record))
        return buffer.getvalue()
    check_mode(kind, picture.mode)
    options = {"quality": quality, "exif": exif(record).tobytes()}
    more = {"subsampling": 0} if kind == "jpeg" else {}  # colors at full resolution
    picture.save(buffer, FORMATS[kind], **options, **more)
    return buffer.getvalue()


def check_mode(kind: str, mode: str) -> None:
    if kind == "jpeg" and mode not in ("L", "RGB"):
        raise UserError(f"JPEG has no {mode} pictures; use --format png or webp.")


def told_by(file: Path) -> str | bytes:
    """The JSON in a picture or a GIF, or beside an array; empty if there is none."""
    if file.suffix == ".npy":
        return read_json(file.with_suffix(".json"), default={}).get("latentsmith", "")
    picture = load_image(file)
    if "latentsmith" in picture.info:
        return picture.info["latentsmith"]
    comment = picture.getexif().get_ifd(ExifTags.IFD.Exif).get(USER_COMMENT, b"")
    if isinstance(comment, bytes) and comment.startswith(UNICODE):
        return comment.removeprefix(UNICODE).decode("utf-16-be", "replace")
    return picture.info.get("comment", "")


def told_by_film(file: Path) -> str:
    av = pyav("read")
    try:
        with av.open(str(file)) as film:
            return film.metadata.get("latentsmith", "")
    except (OSError, ValueError) as error:  # of which PyAV's errors are
        raise UserError(f"{file} cannot be read as a film ({error}).") from error


def pyav(done: str) -> ModuleType:
    """PyAV, which is optional. done: to an MP4."""
    try:
        import av
    except ImportError as error:
        raise UserError(
            f"an MP4 is {done} by PyAV, which is not installed: pip install 'latentsmith[video]', "
            "or use --video gif."
        ) from error
    return av


def text_chunks(record: Mapping[str, Any]) -> PngInfo:
    info = PngInfo()
    for name, text in texts(record).items() if record else ():
        info.add_itxt(name, text)
    return info


def texts(record: Mapping[str, Any]) -> dict[str, str]:
    return {
        "parameters": readable(record),
        "latentsmith": json.dumps(record, ensure_ascii=False),
    }


def exif(record: Mapping[str, Any]) -> Image.Exif:
    tags = Image.Exif()
    if record:
        content = json.dumps(record, ensure_ascii=False)
        tags[XP_COMMENT] = (readable(record) + "\0").encode("utf-16-le")
        tags.get_ifd(ExifTags.IFD.Exif)[USER_COMMENT] = UNICODE + content.encode("utf-16-be")
    return tags


def readable(record: Mapping[str, Any]) -> str:
    rest = {k: v for k, v in record.items() if k != "prompt" and v not in (None, "")}
    rest |= {
        k: ", ".join(f"{n} {h[:8]}" for n, h in v.items())
        for k, v in rest.items()
        if isinstance(v, dict)
    }
    return f"{record['prompt']}\n" + ", ".join(f"{k}: {v}" for k, v in rest.items())


def read_record(file: Path) -> dict[str, Any]:
    """What the writer was told; refuses a file without it."""
    content = told_by_film(file) if file.suffix == ".mp4" else told_by(file)
    try:
        record = json.loads(content)
    except ValueError:
        record = None
    if not isinstance(record, dict) or not isinstance(record.get("prompt"), str):
        raise UserError(
            f"{file} does not say how it was made: it has no record of sample.py, or lost it in "
            "another program. Give the file as sample.py wrote it."
        )
    return record
