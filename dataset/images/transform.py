"""Image files -> pixels (c, h, w), and pixels <-> what the networks take.

The same few steps for every file, in this order: decode, turn upright (EXIF), alpha onto a color,
channels, range, crop and resize. Training, caches and metrics share them.

- Pixels are uint8, or float32 in [-1, 1] if the numbers in the files are of another type or range
  (imagetext/pixel_format.py). For a model of 8 bits, 16-bit numbers are scaled, 65535 -> 255.
- Of what is more than an 8-bit picture every channel is resized by itself.
- Alpha is composited before resizing, so no hidden color bleeds into the edges.
- Resizing is Pillow's Lanczos, antialiased because its kernel widens as the picture shrinks. It
  keeps more detail than bicubic; the price, slight ringing at hard edges, is hardly seen at these
  scales. One resizer everywhere: which one matters less than that it is the same.
- Color profiles (ICC) are not applied, and of animations the first frame is used.
"""

import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Float32, Shaped, UInt8, UInt16
from PIL import Image, ImageOps
from torch import Tensor

from dataset.images import rasters
from dataset.images.pixel_format import EIGHT_BIT, PixelFormat
from dataset.images.rasters import EIGHT_BITS, LUMA, ORIENTATION, Raster, read_raster
from dataset.images.unusable import MissingLibrary, UnusableImage
from dataset.members import Source
from foundation.errors import UserError

Image.init()  # otherwise Pillow knows TIFF and WebP only after a first failure
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")
EXTENSIONS = frozenset((".bmp", ".gif", ".jpeg", ".jpg", ".npy", ".png", ".tif", ".tiff", ".webp"))

Crop = Literal["center", "random", "letterbox", "none"]
Pixels = UInt8[np.ndarray, "c h w"] | Float32[np.ndarray, "c h w"]
PixelTensor = UInt8[Tensor, "*b c h w"] | Float32[Tensor, "*b c h w"]


@dataclass(frozen=True)
class ImageTransform:
    """File -> pixels (channels, height, width). Calling it opens the file.

    Args:
        size: side of the square result, in pixels.
        channels: 1 (luma, ITU-R 601), 3 (RGB) or 4 (RGBA, alpha kept) of a picture; any other
            number, of files that have just so many.
        crop: how a picture of another shape becomes a square.
            center: the largest centered square; what lies outside is lost.
            random: the largest square, anywhere; needs a generator.
            letterbox: the whole picture, between bars of `background` (transparent with alpha; 0
                where there is no color).
            none: never cut, never resized; the file must have this size already.
        background: RGB, 0 to 255, what shows through transparent pixels.
        format: of the numbers in the files. Others are refused, but for 16 bits where it is 8.
    """

    size: int
    channels: int = 3
    crop: Crop = "center"
    background: tuple[int, int, int] = (255, 255, 255)
    format: PixelFormat = EIGHT_BIT
    sides: tuple[int, int] | None = None  # width and height, if the result is no square

    def __post_init__(self):
        if self.size < 1:
            raise UserError(f"image size is {self.size} pixels; it must be at least 1.")
        if self.channels < 1:
            raise UserError(f"{self.channels} channels; an image has at least 1.")
        if len(self.background) != 3 or not all(0 <= v <= 255 for v in self.background):
            raise UserError(f"background {self.background} must be red, green, blue in 0 to 255.")

    def __call__(self, path: Source, generator: torch.Generator | None = None) -> Pixels:
        place = draw_position(generator) if self.crop == "random" else (0.5, 0.5)
        with told_of(path):
            raster = read_raster(path)
        if raster is not None:
            numbers = self.numbers(raster, path)
            planes = [Image.fromarray(plane) for plane in numbers.transpose(2, 0, 1)]
            sized = np.stack([self.fit(plane, path, place, k) for k, plane in enumerate(planes)])
            return sized if self.format.eight_bit else sized.clip(-1, 1)  # Lanczos overshoots
        shrink_to = None if self.crop == "none" else 2 * max(self.shape)
        image, _ = open_image(path, shrink_to)
        if self.channels not in (1, 3, 4):
            raise UnusableImage(
                path,
                "is an 8-bit picture, which gives 1 (gray), 3 (RGB) or 4 (RGBA) channels and not "
                f"{self.channels}",
            )
        if self.format.dtype != "uint8":
            raise UnusableImage(path, f"has 8-bit pixels; expected is {self.format.dtype}")
        image = to_channels(image, self.channels, self.background)
        pixels = np.atleast_3d(self.fit(image, path, place)).transpose(2, 0, 1)
        pixels = np.ascontiguousarray(pixels)
        return pixels if self.format.eight_bit else self.format.normalize(pixels, path)

    @property
    def shape(self) -> tuple[int, int]:
        """Width and height of the result."""
        return self.sides or (self.size, self.size)

    def describe(self) -> dict:
        """All that the pixels depend on besides the file, as JSON; part of a cache's identity."""
        described = {"version": 1, "resample": "lanczos", **asdict(self)}
        del described["format"]  # said only where it is not the usual one: older caches stay valid
        described |= {} if self.format == EIGHT_BIT else {"format": self.format.describe()}
        return described | {"background": list(self.background)}

    def numbers(self, raster: Raster, path: Source) -> Shaped[np.ndarray, "h w c"]:
        """As `format` has them in memory, with the right number of channels."""
        scaled = self.format.eight_bit and raster.dtype == "uint16"
        if raster.dtype != self.format.dtype and not scaled:
            raise UnusableImage(
                path,
                f"holds numbers of type {raster.dtype}; expected is {self.format}. Type and range "
                "must be the same in all files; --value-range LOW HIGH states the range",
            )
        try:
            values = rasters.to_channels(raster, self.channels, self.format.layout, self.background)
        except ValueError as error:
            raise UnusableImage(path, str(error)) from error
        if not self.format.eight_bit:
            return self.format.normalize(values, path)
        return eight_bits(values) if scaled else values

    def fit(
        self,
        image: Image.Image,
        path: Source,
        place: tuple[float, float],
        channel: int | None = None,
    ) -> Shaped[np.ndarray, "..."]:
        """channel: which of them the image is, if it is one."""
        if self.crop == "letterbox":
            return np.asarray(self.letterbox(image, channel))
        if self.crop == "none":
            if image.size != self.shape:
                raise UnusableImage(
                    path,
                    f"is {image.width}x{image.height} pixels, and without cropping it must be "
                    f"{self.shape[0]}x{self.shape[1]}",
                )
            return np.asarray(image)
        assert self.crop in ("center", "random"), self.crop
        width = min(image.width, image.height * self.shape[0] / self.shape[1])
        height = min(image.height, image.width * self.shape[1] / self.shape[0])
        left, top = (image.width - width) * place[0], (image.height - height) * place[1]
        box = (left, top, left + width, top + height)
        return np.asarray(image.resize(self.shape, Image.Resampling.LANCZOS, box=box))

    def letterbox(self, image: Image.Image, channel: int | None) -> Image.Image:
        scale = min(self.shape[0] / image.width, self.shape[1] / image.height)
        inner = [max(1, round(side * scale)) for side in image.size]
        image = image.resize(inner, Image.Resampling.LANCZOS)
        if channel is None:
            bars = Image.new("RGBA", self.shape, (*self.background, 0)).convert(image.mode)
        else:
            bars = Image.new(image.mode, self.shape, self.bar(channel, image.mode))
        bars.paste(image, ((self.shape[0] - inner[0]) // 2, (self.shape[1] - inner[1]) // 2))
        return bars

    def bar(self, channel: int, mode: str) -> float:
        """What the bars hold in a channel; mode: L for 8 bits, F for [-1, 1]."""
        luma = round(float(np.dot(self.background, LUMA)))
        levels = {1: (luma,), 3: self.background, 4: (*self.background, 0)}
        level = levels[self.channels][channel] if self.channels in levels else 0
        return level if mode == "L" else level / 127.5 - 1


def draw_position(generator: torch.Generator | None) -> tuple[float, float]:
    """Where a random crop lies between left (0) and right (1), top (0) and bottom (1)."""
    if generator is None:
        raise UserError(
            "a random crop is new at every reading, and here each image is read once and kept. "
            "Use crop center or letterbox."
        )
    return tuple(torch.rand(2, generator=generator, dtype=torch.float64).tolist())


def load_image(path: Source, shrink_to: int | None = None) -> Image.Image:
    """Decodes a picture and turns it upright, in 8 bits: 16 are scaled, 65535 -> 255.

    shrink_to: a JPEG may be decoded at 1/2, 1/4 or 1/8 if both sides keep so many pixels; large
        photos then load several times faster.

    Raises:
        UnusableImage: it is none, or ends too early.
    """
    with told_of(path):
        raster = read_raster(path)
    if raster is None:
        image, _ = open_image(path, shrink_to)
        return image
    if not raster.color or raster.dtype != "uint16":
        raise UnusableImage(path, f"holds numbers of type {raster.dtype}, and is no picture")
    pixels = eight_bits(raster.interleaved(channels=None))
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    with path.open("rb") as file, suppress(Image.UnidentifiedImageError):
        image.info = dict(Image.open(file, formats=FORMATS).info)  # texts beside the pixels
    return image


def eight_bits(values: UInt16[np.ndarray, "*shape"]) -> UInt8[np.ndarray, "*shape"]:
    """0 ... 65535 -> 0 ... 255, rounded."""
    return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)


def inspect_image(path: Source) -> tuple[tuple[int, int], str]:
    """Width and height upright, and the kind of a file that decodes to its end.

    Of an 8-bit picture that is Pillow's mode; of other files the type of the numbers and how many
    channels there are, such as uint16x3. See `kind_of`.
    """
    with told_of(path):
        raster = read_raster(path)
    if raster is None:
        image, size = open_image(path, shrink_to=1)
        return size, image.mode
    height, width, channels = raster.interleaved(channels=None).shape
    return (width, height), f"{raster.dtype}x{channels}"


def kind_of(mode: str) -> tuple[str, int]:
    """Type of the numbers, as numpy calls it, and channels; of what `inspect_image` calls a kind.

    What Pillow has in fewer bits or in other colors is read as 8-bit gray or RGB.
    """
    if mode not in EIGHT_BITS:
        dtype, _, channels = mode.partition("x")
        return dtype, int(channels)
    return "uint8", {"1": 1, "L": 1, "LA": 2, "PA": 4, "RGBA": 4}.get(mode, 3)


def open_image(path: Source, shrink_to: int | None) -> tuple[Image.Image, tuple[int, int]]:
    """The upright picture, and the size it has in the file, upright."""
    with told_of(path), path.open("rb") as file, Image.open(file, formats=FORMATS) as image:
        size = image.size
        if image.mode not in EIGHT_BITS:
            raise UnusableImage(path, f"has pixels of kind {image.mode!r}, which are not read")
        if shrink_to is not None:
            image.draft(None, (shrink_to, shrink_to))
        image.load()
        if image.getexif().get(ORIENTATION, 1) >= 5:
            size = size[::-1]
        return ImageOps.exif_transpose(image), size


@contextmanager
def told_of(path: Source) -> Iterator[None]:
    """Errors in the file become UnusableImage, with the reason."""
    try:
        if path.stat().st_size == 0:
            raise UnusableImage(path, "is empty (0 bytes)")
        yield
    except (UnusableImage, MissingLibrary):
        raise
    except Image.UnidentifiedImageError as error:
        raise UnusableImage(path, "is not an image, whatever its name says") from error
    except (OSError, SyntaxError, ValueError, EOFError, struct.error) as error:
        raise UnusableImage(path, f"cannot be read: {error}") from error
    except Image.DecompressionBombError as error:
        raise UnusableImage(path, f"is too large: {error}") from error


def to_channels(image: Image.Image, channels: int, background: tuple[int, int, int]) -> Image.Image:
    """Gray, RGB or RGBA."""
    if channels == 4:
        return image.convert("RGBA")
    if image.has_transparency_data:
        canvas = Image.new("RGBA", image.size, (*background, 255))
        image = Image.alpha_composite(canvas, image.convert("RGBA"))
    return image.convert("RGB" if channels == 3 else "L")


def to_model(pixels: PixelTensor) -> Float[Tensor, "*b c h w"]:
    """0 ... 255 -> [-1, 1], where other than 8-bit pixels are already."""
    return pixels if pixels.is_floating_point() else pixels.to(torch.float32) / 127.5 - 1


def to_uint8(images: Float[Tensor, "*b c h w"]) -> UInt8[Tensor, "*b c h w"]:
    """[-1, 1] -> 0 ... 255, rounded; what lies outside is clamped."""
    return ((images.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def like(pixels: PixelTensor, images: Float[Tensor, "*b c h w"]) -> PixelTensor:
    """[-1, 1] -> pixels of the same kind as those, to be compared with them."""
    return images.float().clamp(-1, 1) if pixels.is_floating_point() else to_uint8(images)
