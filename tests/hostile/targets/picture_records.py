"""Pictures with the record of how they were made."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from generation.metadata import encode_image
from generation.options import GenerationOptions
from generation.prompts import expand
from generation.reproduce import entries_of_record
from generation.video import encode_gif
from tests.hostile.fuzz import FuzzTarget

RECORD = {"prompt": "red", "seed": 3, "steps": 5, "model": "ldm", "hashes": {"unet": "0" * 64}}
STATIONS = [{"prompt": "red", "seed": 1, "negative_prompt": ""}, {"prompt": "blue", "seed": 2}]


def picture() -> Image.Image:
    return Image.fromarray(np.arange(12 * 12 * 3, dtype=np.uint8).reshape(12, 12, 3))


def pngs() -> Sequence[bytes]:
    return [encode_image(picture(), record) for record in (RECORD, {**RECORD, "dtype": "bf16"})]


def jpegs() -> Sequence[bytes]:
    return [encode_image(picture(), RECORD, "jpeg")]


def webps() -> Sequence[bytes]:
    return [encode_image(picture(), RECORD, "webp")]


def gifs() -> Sequence[bytes]:
    record = {**RECORD, "stations": STATIONS, "interpolate": 2, "video": "gif", "fps": 5.0}
    return [encode_gif([picture()] * 2, 5, record)]


def texts() -> Sequence[bytes]:
    """The JSON file beside an array."""
    return [json.dumps({"latentsmith": json.dumps(RECORD)}).encode()]


def read(file: Path) -> object:
    entries, call = entries_of_record(file, GenerationOptions())
    return [image.seed for image in expand(entries)], call


def read_beside(file: Path) -> object:
    array = file.with_suffix(".npy")
    np.save(array, np.zeros((2, 2)))
    return read(array)


TARGETS = [
    FuzzTarget("a.png", pngs, read),
    FuzzTarget("a.jpg", jpegs, read),
    FuzzTarget("a.webp", webps, read),
    FuzzTarget("a.gif", gifs, read),
    FuzzTarget("a.json", texts, read_beside),
]
