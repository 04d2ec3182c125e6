"""What is written about a picture, and drawing it again from there."""

import hashlib
from collections.abc import Iterator, Mapping
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageSequence

from dataset.images.rasters import read_raster
from foundation.errors import UserError
from generation.metadata import read_record
from generation.options import DEFAULTS, Options
from generation.prompts import Line, Picture, line_of, told

ALWAYS = ("negative_prompt", "steps", "guidance_scale", "sampler", "height", "width")
MODEL = (
    "model",
    "ema",
    "dtype",
    "batch_size",
    "compile",
    "hashes",
    "files",
    "lora",
    "lora_scale",
    "stations",
    "interpolate",
    "video",
    "fps",
)  # of a record: the rest are options


EXACT = (".png", ".npy", ".gif")  # formats, given the same pixels


def record_of(
    picture: Picture, model: Path, ema: bool, dtype: str, hashes: Mapping[str, str]
) -> dict[str, Any]:
    """All that is needed to draw it again, as JSON; of the rarer options those that were given."""
    options = picture.options
    record = {"prompt": picture.prompt, "seed": picture.seed}
    record |= {name: getattr(options, name) for name in ALWAYS}
    record |= {name: plain(value) for name, value in options.changed().items()}
    record |= {"model": str(model), "hashes": dict(hashes)}
    record |= {"ema": True} if ema else {}
    record |= {"dtype": dtype} if dtype != "fp32" else {}
    files = {str(file): sha256_of(file) for file in options.files()}
    return record | ({"files": files} if files else {})


def plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


def sha256_of(file: Path) -> str:
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror}).") from error


def lines_from(file: Path, options: Options) -> tuple[list[Line], dict[str, Any]]:
    """What to draw again, and the record that says so; of an animation, all of its stations.

    options: none but where the weaker model is now, which is checked by its hash.
    """
    given = [name for name in DEFAULTS if options.given(name) and name != "weak_model"]
    if given:
        raise UserError(
            f"--from-png takes the options of a picture from its file; leave out "
            f"{', '.join('--' + name.replace('_', '-') for name in given)}."
        )
    record = read_record(file)
    for path, sha256 in record.get("files", {}).items():
        if (found := sha256_of(Path(path))) != sha256:
            raise UserError(
                f"{file} was made from {path} of sha256 {sha256}, but that has {found}. Put the "
                "right one back."
            )
    entries = {name: value for name, value in record.items() if name not in MODEL}
    if options.weak_model is not None:
        if "weak_model" not in entries:
            raise UserError(f"{file} was drawn without a weaker model; leave out --weak-model.")
        del entries["weak_model"]
    with told(str(file)):
        stations = record.get("stations", [{}])
        return [line_of(entries | station, options) for station in stations], record


def check_hashes(record: Mapping[str, Any], hashes: Mapping[str, str], file: Path) -> None:
    for part, sha256 in record.get("hashes", {}).items():
        if hashes.get(part) != sha256:
            flag = "--weak-model" if part == "weak_model" else "--model"
            raise UserError(
                f"{file} was drawn by another model: its {part} has sha256 {sha256}, this one's "
                f"{hashes.get(part)}. Name the right one by {flag}."
            )


def check_same(again: Path, file: Path) -> None:
    """Refuses other pixels than those of the file, which tell another machine.

    In formats that lose something on the way, equal pixels are not asked for.
    """
    for one in (file, again):
        if one.suffix not in EXACT:
            print(f"{one} is of a format that changes pixels, so they are not compared.")
            return
    frames = zip_longest(pixels_in(file), pixels_in(again))
    if all(a is not None and np.array_equal(a, b) for a, b in frames):
        print(f"the same pixels as {file}")
    else:
        raise UserError(
            f"the pixels differ from those of {file}. On another kind of machine, or with another "
            "version of PyTorch, numbers are rounded otherwise."
        )


def pixels_in(file: Path) -> Iterator[np.ndarray]:
    """Those of each frame."""
    if (raster := read_raster(file)) is not None:
        yield raster.interleaved(channels=None)
        return
    with Image.open(file) as image:
        for frame in ImageSequence.Iterator(image):
            yield np.asarray(frame.convert("RGB") if image.format == "GIF" else frame)
