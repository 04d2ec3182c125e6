"""The record of how an image was made: what it says, and where it is stored in each file format.

PNG           text chunks `parameters`, which viewers show, and `latentsmith`, in JSON
JPEG, WebP    EXIF tags XPComment, which viewers show, and UserComment, in JSON
GIF           comment, in JSON
MP4           metadata `parameters` and `latentsmith`, as in a PNG
NPY           a file of the same name ending in .json (`dataset.images.write`)
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from types import ModuleType
from typing import Any

from PIL import ExifTags, Image
from PIL.PngImagePlugin import PngInfo

from dataset.images.texts import UNICODE, USER_COMMENT, read_texts
from foundation.errors import UserError, one_line
from foundation.files import MEGABYTE, open_file, read_json
from foundation.json_reading import load_json
from generation.prompts import ImageSpec

PIL_FORMATS = {"png": "PNG", "jpeg": "JPEG", "webp": "WEBP"}
SUFFIXES = {"png": ".png", "jpeg": ".jpg", "webp": ".webp", "gif": ".gif", "mp4": ".mp4"}
XP_COMMENT = 0x9C9C  # tag of EXIF
# Options that every record holds, even where they are the defaults.
MAX_RECORD = 16 * 2**20  # characters; a record has some hundred, that of a long video megabytes
ALWAYS_RECORDED = ("negative_prompt", "steps", "guidance_scale", "sampler", "height", "width")


# What a record says.


def make_record(
    image: ImageSpec, model: Path, ema: bool, dtype: str, hashes: Mapping[str, str]
) -> dict[str, Any]:
    """Make the record of an image, ready for JSON; less usual options stand in it only if set.

    Of files and folders it has the last part of the path alone: the rest says where somebody works,
    and hashes bind the image to its model and files.
    """
    options = image.options
    record: dict[str, Any] = {"prompt": image.prompt, "seed": image.seed}
    record |= {name: getattr(options, name) for name in ALWAYS_RECORDED}
    for name, value in options.non_defaults().items():
        record[name] = last_part(value) if isinstance(value, Path) else value
    record |= {"model": last_part(model), "hashes": dict(hashes)}
    if ema:
        record["ema"] = True
    if dtype != "fp32":
        record["dtype"] = dtype
    if files := {name: hash_input_file(file) for name, file in options.input_files().items()}:
        record["files"] = files
    return record


def lora_record(source: Path, scale: float) -> dict[str, Any]:
    """Return the entries of a record about the LoRA that was added to the model."""
    return {"lora": last_part(source), "lora_scale": scale}


def last_part(path: Path) -> str:
    """Return the name of a file or folder; that of a run for the model in it."""
    path = Path(os.path.abspath(path))
    return path.parent.name if path.name == "model" and path.parent.name else path.name


def make_video_record(
    first_record: Mapping[str, Any],
    keyframes: Sequence[ImageSpec],
    *,
    interpolate: int,
    video: str,
    fps: float,
) -> dict[str, Any]:
    """Make the record of a video from the record of its first keyframe and from all keyframes."""
    stations = [
        {
            "prompt": image.prompt,
            "seed": image.seed,
            "negative_prompt": image.options.negative_prompt,
        }
        for image in keyframes
    ]
    settings = {"interpolate": interpolate, "video": video, "fps": fps}
    return {**first_record, "stations": stations, **settings}


def hash_input_file(file: Path) -> str:
    """Compute the sha256 of a file that an image was made from.

    Raises:
        UserError: the file cannot be read.
    """
    digest = hashlib.sha256()
    with open_file(file) as stream:
        while part := stream.read(MEGABYTE):
            digest.update(part)
    return digest.hexdigest()


# Where it is stored.


def encode_image(
    image: Image.Image, record: Mapping[str, Any], file_format: str = "png", quality: int = 95
) -> bytes:
    """Encode an image file with its record.

    Args:
        record: empty for none, as in a grid.
        file_format: a key of PIL_FORMATS.
        quality: of JPEG and WebP, 1 to 100.

    Raises:
        UserError: the format cannot hold the image's mode.
    """
    buffer = BytesIO()
    if file_format == "png":
        info = PngInfo()
        for name, text in metadata_texts(record).items() if record else ():
            info.add_itxt(name, text)
        image.save(buffer, "PNG", pnginfo=info)
        return buffer.getvalue()
    check_mode(file_format, image.mode)
    options = {"quality": quality, "exif": make_exif(record).tobytes()}
    if file_format == "jpeg":
        options["subsampling"] = 0  # colors at full resolution
    image.save(buffer, PIL_FORMATS[file_format], **options)
    return buffer.getvalue()


def check_mode(file_format: str, mode: str) -> None:
    """Raise UserError if the format cannot hold images of this PIL mode."""
    if file_format == "jpeg" and mode not in ("L", "RGB"):
        raise UserError(f"JPEG cannot hold {mode} images; use --format png or webp.")


def metadata_texts(record: Mapping[str, Any]) -> dict[str, str]:
    """Return the record as text by metadata key: for people, and in JSON."""
    text = json.dumps(record, ensure_ascii=False)
    return {
        "parameters": readable(record).encode("utf-8", "backslashreplace").decode(),
        # File names may contain bytes that are not UTF-8; as JSON escapes they survive.
        "latentsmith": text.encode("utf-8", "backslashreplace").decode(),
    }


def make_exif(record: Mapping[str, Any]) -> Image.Exif:
    """Make EXIF tags that hold the record; without a record there are none."""
    tags = Image.Exif()
    if record:
        texts = metadata_texts(record)
        tags[XP_COMMENT] = (texts["parameters"] + "\0").encode("utf-16-le")
        comment = UNICODE + texts["latentsmith"].encode("utf-16-be")
        tags.get_ifd(ExifTags.IFD.Exif)[USER_COMMENT] = comment
    return tags


def readable(record: Mapping[str, Any]) -> str:
    """Format the record for people: the prompt on a line, then names and values."""
    items = []
    for name, value in record.items():
        if name == "prompt" or value is None or value == "":
            continue
        if isinstance(value, dict):  # of hashes
            value = ", ".join(f"{key} {sha256[:8]}" for key, sha256 in value.items())
        items.append(f"{name}: {value}")
    return f"{record['prompt']}\n" + ", ".join(items)


def read_record(file: Path) -> dict[str, Any]:
    """Read the record from a file that sample.py wrote.

    Raises:
        UserError: the file cannot be read, or has no record.
    """
    content = read_video_text(file) if file.suffix.lower() == ".mp4" else read_image_text(file)
    record, reason = None, "it has no record of sample.py, or another program removed it"
    try:
        if isinstance(content, str | bytes) and 0 < len(content) <= MAX_RECORD:
            record = load_json(content, raw_bytes=True)
    except UserError as error:
        reason = f"its record {error}".removesuffix(".")
    if not isinstance(record, dict) or not isinstance(record.get("prompt"), str):
        raise UserError(
            f"{one_line(file)} does not say how it was made: {reason}. Give the file as sample.py "
            "wrote it."
        )
    return record


def read_image_text(file: Path) -> str | bytes:
    """Return the JSON stored in an image or a GIF, or next to an array; empty if there is none."""
    if file.suffix == ".npy":
        return read_json(file.with_suffix(".json"), default={}).get("latentsmith", "")
    texts = read_texts(file)
    return texts.get("latentsmith", texts.get("comment", ""))


def read_video_text(file: Path) -> str:
    """Return the JSON stored in an MP4; empty if there is none."""
    av = import_pyav("read")
    with open_file(file) as stream:
        try:
            with av.open(stream, format="mp4") as video:
                return video.metadata.get("latentsmith", "")
        except (OSError, ValueError, LookupError) as error:  # the base classes of PyAV's errors
            raise UserError(
                f"{one_line(file)} cannot be read as a video ({one_line(error)})."
            ) from error


def import_pyav(action: str) -> ModuleType:
    """Import PyAV, which is optional; action: "read" or "written", for the error message."""
    try:
        import av
    except ImportError as error:
        raise UserError(
            f"an MP4 is {action} by PyAV, which is not installed: pip install av. "
            "Or use --video gif."
        ) from error
    return av
