"""Image files: formats that fit the model's pixels, with records, and previews."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from safetensors.torch import save as encode_safetensors

from autoencoder.io import read_provenance
from dataset.images.pixel_format import PixelFormat, recorded_format
from dataset.images.write import choose_extension, encode_files
from foundation.files import atomic_file
from foundation.shapes import Latents
from generation.metadata import SUFFIXES, check_mode, encode_image, metadata_texts
from ldm import TextToImage
from ldm.pipeline.image_processor import PIL_MODES
from ldm.pipeline.io import read_model_provenance
from ldm.tasks.base import Task


def model_pixel_format(model: Path) -> PixelFormat:
    """Return the pixel format of the images that a model was trained on."""
    return recorded_format(read_model_provenance(model), read_provenance(model))


def shows_eight_bit(pixels: PixelFormat, channels: int) -> bool:
    """Return whether the images of a model are ordinary pictures of 8 bits."""
    return pixels.eight_bit and channels in PIL_MODES


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
        self.eight_bit = shows_eight_bit(pixels, channels)
        if self.eight_bit:
            check_mode(file_format, PIL_MODES[channels])
            self.suffix = SUFFIXES[file_format]
        else:
            self.suffix = choose_extension(pixels, channels)

    @property
    def suffixes(self) -> list[str]:
        """Suffixes of the files for one image."""
        others = [".json"] * (self.suffix == ".npy") + [".safetensors"] * self.save_latents
        return [*others, self.suffix]

    def encode(
        self, latents: Latents, task: Task, record: Mapping[str, Any]
    ) -> tuple[dict[str, bytes], Image.Image]:
        """Return the contents of an image's files by suffix, that of the image last.

        Also the image with 8 bits per channel, for a grid.
        """
        image = self.pipeline.to_picture(latents, task)
        contents: dict[str, bytes] = {}
        if self.save_latents:
            contents[".safetensors"] = encode_safetensors({"latents": latents.cpu()})
        if self.eight_bit:
            contents[self.suffix] = encode_image(image, record, self.file_format, self.quality)
        else:
            pixels, file = self.pipeline.decode(latents)[0], Path(f"image{self.suffix}")
            files = encode_files(pixels, file, self.pixels, metadata_texts(record))
            contents |= {path.suffix: content for path, content in files.items()}
        return contents, image


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
                picture = self.pipeline.to_picture(z)
                with atomic_file(file) as partial:
                    picture.save(partial, "PNG")
