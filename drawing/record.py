"""What is written about a picture, and drawing it again from there."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from drawing.lines import Line, Picture, line_of, told
from drawing.metadata import read_record
from drawing.options import DEFAULTS, Options
from imagetext.images import load_image

ALWAYS = ("negative_prompt", "steps", "guidance_scale", "sampler", "height", "width")
MODEL = (
    "model",
    "ema",
    "dtype",
    "hashes",
    "files",
    "lora",
    "lora_scale",
)  # of a record: the rest are options


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
        raise ValueError(f"{file} cannot be read ({error.strerror}).") from error


def line_from(file: Path, options: Options) -> tuple[Line, dict[str, Any]]:
    """What to draw again, and the record that says so."""
    given = [name for name in DEFAULTS if options.given(name)]
    if given:
        raise ValueError(
            f"--from-png takes the options of a picture from its file; leave out "
            f"{', '.join('--' + name.replace('_', '-') for name in given)}."
        )
    record = read_record(file, load_image(file))
    for path, sha256 in record.get("files", {}).items():
        if (found := sha256_of(Path(path))) != sha256:
            raise ValueError(
                f"{file} was made from {path} of sha256 {sha256}, but that has {found}. Put the "
                "right one back."
            )
    with told(str(file)):
        return line_of({k: v for k, v in record.items() if k not in MODEL}, options), record


def check_hashes(record: Mapping[str, Any], hashes: Mapping[str, str], file: Path) -> None:
    for part, sha256 in record.get("hashes", {}).items():
        if hashes.get(part) != sha256:
            raise ValueError(
                f"{file} was drawn by another model: its {part} has sha256 {sha256}, this one's "
                f"{hashes.get(part)}. Name the right one by --model."
            )


def check_same(again: Image.Image, file: Path) -> None:
    """Refuses other pixels than those of the file, which tell a lossy format or another machine."""
    with Image.open(file) as before:
        lossy = before.format != "PNG"
        first, second = (np.asarray(picture).astype(int) for picture in (before, again))
    if first.shape == second.shape and np.array_equal(first, second):
        print(f"the same pixels as {file}")
    elif lossy:
        print(f"{file} is of a format that changes pixels, so they are not compared.")
    else:
        raise ValueError(
            f"the pixels differ from those of {file}. On another kind of machine, or with another "
            "version of PyTorch, numbers are rounded otherwise."
        )
