"""Image files: names that are free, formats that fit the model's pixels, previews."""

import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from safetensors.torch import save as encode_safetensors

from autoencoder.io import read_provenance
from dataset.images.pixel_format import PixelFormat, recorded_format
from dataset.images.write import choose_extension, write_image, write_new_file
from foundation.errors import UserError
from foundation.shapes import Latents
from generation.metadata import SUFFIXES, check_mode, encode_image, metadata_texts
from ldm import TextToImage
from ldm.pipeline.image_processor import PIL_MODES
from ldm.pipeline.io import read_model_provenance
from ldm.tasks.base import Task

NAME_FIELDS = ("number", "seed", "prompt", "sampler", "steps")
MAX_PROMPT_LENGTH = 80  # characters of a prompt in a file name


def plan_names(
    folder: Path, pattern: str, suffixes: Sequence[str], images: Sequence[Mapping[str, Any]]
) -> list[Path]:
    """Choose a path without suffix for each image, so that no file exists with any suffix.

    Args:
        pattern: such as "{number:05d}" or "{prompt}-{seed}". Numbers continue from the highest one
            in the folder.
        images: values of the pattern's fields, for each image.

    Raises:
        UserError: the pattern is malformed, a file exists, or two images have the same name.
    """
    fields = pattern_fields(pattern)
    number = next_number(folder, pattern, suffixes) if "number" in fields else 0
    names = []
    for k, image in enumerate(images):
        values = {**image, "number": number + k, "prompt": slug(image.get("prompt", ""))}
        try:
            names.append(pattern.format(**{name: values[name] for name in fields}))
        except (ValueError, KeyError, IndexError) as error:
            raise UserError(f"--name {pattern} cannot be filled in ({error}).") from error
    repeated = [name for name, count in Counter(names).items() if count > 1]
    existing = [
        name for name in names if any((folder / (name + suffix)).exists() for suffix in suffixes)
    ]
    for conflicts, reason in ((repeated, "is that of several images"), (existing, "exists")):
        if conflicts:
            raise UserError(
                f"the name {conflicts[0]} {reason} (--name {pattern}); nothing is overwritten. Put "
                "{number} or {seed} into it, or choose another --out."
            )
    return [folder / name for name in names]


def pattern_fields(pattern: str) -> set[str]:
    """Return the fields of a name pattern, which is checked."""
    try:
        fields = {name for _, name, _, _ in string.Formatter().parse(pattern) if name is not None}
    except ValueError as error:
        raise UserError(f"--name {pattern} is not a pattern ({error}).") from error
    if fields - set(NAME_FIELDS) or not pattern or "/" in pattern or "\\" in pattern:
        raise UserError(
            f"--name {pattern} must be a file name without a folder, which may contain "
            f"{', '.join('{' + name + '}' for name in NAME_FIELDS)}."
        )
    return fields


def next_number(folder: Path, pattern: str, suffixes: Sequence[str]) -> int:
    """Return the number after the highest one among the files that match the pattern."""
    expressions: list[str] = []
    for text, name, _, _ in string.Formatter().parse(pattern):
        expressions.append(re.escape(text))
        if name is not None:
            first_number = name == "number" and r"(\d+)" not in expressions
            expressions.append(r"(\d+)" if first_number else ".*")
    endings = "|".join(map(re.escape, suffixes))
    expression = re.compile("".join(expressions) + f"({endings})")
    files = folder.iterdir() if folder.is_dir() else ()
    matches = (expression.fullmatch(file.name) for file in files)
    return max((int(match[1]) for match in matches if match), default=-1) + 1


def slug(prompt: str) -> str:
    """Replace what is not safe in a file name by hyphens, and shorten it."""
    return re.sub(r"[^\w-]+", "-", prompt).strip("-")[:MAX_PROMPT_LENGTH] or "no-prompt"


def write_new(path: Path, suffix: str, content: bytes) -> Path:
    """Write a file that must not exist; return its path with the suffix."""
    path = path.with_name(path.name + suffix)
    write_new_file(path, content)
    return path


def model_pixel_format(model: Path) -> PixelFormat:
    """Return the pixel format of the images that a model was trained on."""
    return recorded_format(read_model_provenance(model), read_provenance(model))


class ImageWriter:
    """Decodes latents and writes the images with their records.

    A model that was trained on 8-bit images of 1, 3 or 4 channels gives image files of
    `file_format`. Any other gives files as it was trained on: a 16-bit PNG or an array.
    """

    def __init__(
        self,
        pipeline: TextToImage,
        pixels: PixelFormat,
        *,
        file_format: str = "png",
        quality: int = 95,
        save_latents: bool = False,
    ):
        """Raise UserError if `file_format` cannot hold the model's images."""
        self.pipeline, self.pixels = pipeline, pixels
        self.file_format, self.quality, self.save_latents = file_format, quality, save_latents
        channels = pipeline.autoencoder.config.out_channels
        self.eight_bit = pixels.eight_bit and channels in PIL_MODES
        if self.eight_bit:
            check_mode(file_format, PIL_MODES[channels])
            self.suffix = SUFFIXES[file_format]
        else:
            self.suffix = choose_extension(pixels, channels)

    @property
    def suffixes(self) -> list[str]:
        """Suffixes of the files for one image."""
        return [self.suffix, ".safetensors"] if self.save_latents else [self.suffix]

    def write(
        self, path: Path, latents: Latents, task: Task, record: Mapping[str, Any]
    ) -> Image.Image:
        """Write the files of one image; return it with 8 bits per channel, for a grid.

        Args:
            path: without a suffix.
        """
        image = self.pipeline.to_picture(latents, task)
        if self.eight_bit:
            content = encode_image(image, record, self.file_format, self.quality)
            write_new(path, self.suffix, content)
        else:
            file = path.with_name(path.name + self.suffix)
            pixels = self.pipeline.decode(latents)[0]
            write_image(pixels, file, self.pixels, metadata_texts(record))
        if self.save_latents:
            write_new(path, ".safetensors", encode_safetensors({"latents": latents.cpu()}))
        return image


class Previews:
    """Callback of a pipeline that writes its current estimates of the images.

    It writes FOLDER/previews/NAME-CALL.png after every `every` network calls, and replaces a file
    that is there.
    """

    def __init__(self, pipeline: TextToImage, folder: Path, paths: Sequence[Path], every: int):
        """Create the folder for previews.

        Args:
            paths: the images' own files, whose names are used.
            every: network calls from one preview to the next; 0 writes none.
        """
        self.pipeline, self.folder, self.every = pipeline, folder / "previews", every
        self.names = [path.name for path in paths]
        self.calls: Counter[int] = Counter()
        if every:
            self.folder.mkdir(exist_ok=True)

    def __call__(self, places: list[int], z_0: Latents) -> None:
        """Write the previews of some images, if it is time.

        Args:
            places: indices of the images.
            z_0: estimates of their latents.
        """
        self.calls[places[0]] += 1
        call = self.calls[places[0]]
        if self.every and call % self.every == 0:
            for place, z in zip(places, z_0.split(1), strict=True):
                file = self.folder / f"{self.names[place]}-{call:03d}.png"
                self.pipeline.to_picture(z).save(file)
