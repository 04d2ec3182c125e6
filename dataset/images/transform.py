"""Image files to pixels (c, h, w), and pixels to and from what the networks take.

The same steps for every file, in this order: decode, turn upright (EXIF), composite alpha onto a
color, convert channels and range, crop and resize. Training, caches and metrics share them.

- Pixels are uint8, or float32 in [-1, 1] if the numbers in the files have another type or range
  (`dataset.images.pixel_format`). For a model of 8 bits, 16-bit numbers are scaled: 65535 -> 255.
- Each channel of a file beyond 8-bit pictures is resized by itself.
- Alpha is composited before resizing, so that no hidden color bleeds into the edges.
- Images are resized by Pillow's Lanczos filter. It is antialiased, because its kernel widens as the
  picture shrinks, and keeps more detail than bicubic; slight ringing at hard edges is the price.
  Which filter is used matters less than that it is the same everywhere.
- Color profiles (ICC) are ignored, and only the first frame of an animation is used.
"""

from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal, NoReturn

import numpy as np
import torch
from jaxtyping import Float, Float32, Shaped, UInt8, UInt16
from PIL import Image
from torch import Tensor

from dataset.images import rasters
from dataset.images.border import border
from dataset.images.decode import EIGHT_BIT_MODES, Picture, decode
from dataset.images.pixel_format import EIGHT_BIT, FULL_RANGES, PixelFormat
from dataset.images.rasters import LUMA, Raster, in_bands
from dataset.source import Source, UnusableImage
from foundation.errors import UserError

BAND_PIXELS = 1 << 24  # pixels that are composited at once
Crop = Literal["center", "random", "letterbox", "none"]
Pixels = UInt8[np.ndarray, "c h w"] | Float32[np.ndarray, "c h w"]
PixelTensor = UInt8[Tensor, "*b c h w"] | Float32[Tensor, "*b c h w"]
CENTER = (0.5, 0.5)


@dataclass(frozen=True)
class ImageTransform:
    """Turns an image file into pixels (channels, height, width) when it is called.

    Args:
        size: side of the square result, in pixels.
        channels: 1 (luma, ITU-R 601), 3 (RGB) or 4 (RGBA, alpha is kept) for pictures; any other
            number for files that have exactly as many.
        crop: how a picture of another aspect ratio is made square.
            center: the largest centered square; pixels outside are lost.
            random: the largest square at a random position; needs a generator.
            letterbox: the whole picture, between bars of `background` (transparent in RGBA; 0 in
                channels that have no color).
            none: never cropped or resized; the file must have this size already.
        background: RGB, 0 to 255, seen through transparent pixels.
        format: of the numbers in the files. Files of another type are refused, except 16-bit files
            where the format is 8 bits.
        sides: width and height of a result that is not square; `size` is not used then.
    """

    size: int
    channels: int = 3
    crop: Crop = "center"
    background: tuple[int, int, int] = (255, 255, 255)
    format: PixelFormat = EIGHT_BIT
    sides: tuple[int, int] | None = None

    def __post_init__(self):
        if self.size < 1:
            raise UserError(f"image size is {self.size} pixels; it must be at least 1.")
        if self.channels < 1:
            raise UserError(f"{self.channels} channels; an image has at least 1.")
        if len(self.background) != 3 or not all(0 <= v <= 255 for v in self.background):
            raise UserError(f"background {self.background} must be red, green, blue in 0 to 255.")

    @property
    def shape(self) -> tuple[int, int]:
        """Width and height of the result."""
        return self.sides or (self.size, self.size)

    def describe(self) -> dict[str, Any]:
        """Return as JSON all that the pixels depend on besides the file: part of cache keys."""
        described = {"version": 1, "resample": "lanczos", **asdict(self)}
        del described["format"]  # listed only if it is unusual, so that older caches stay valid
        if self.format != EIGHT_BIT:
            described["format"] = self.format.describe()
        return described | {"background": list(self.background)}

    def __call__(self, path: Source, generator: torch.Generator | None = None) -> Pixels:
        """Read a file.

        generator: chooses the position of a random crop.

        Raises:
            UnusableImage: the file cannot be read into such pixels.
        """
        position = draw_position(generator) if self.crop == "random" else CENTER

        def transform(found: Picture | Raster) -> Pixels:
            if isinstance(found, Raster):
                return self.transform_raster(found, path, position)
            return self.transform_picture(found.image, path, position)

        return decode(path, transform, None if self.crop == "none" else 2 * max(self.shape))

    def transform_picture(
        self, image: Image.Image, path: Source, position: tuple[float, float]
    ) -> Pixels:
        """Transform a picture of 8-bit pixels."""
        if self.channels not in (1, 3, 4):
            raise UnusableImage(
                path,
                "is an 8-bit picture, which gives 1 (gray), 3 (RGB) or 4 (RGBA) channels, not "
                f"{self.channels}",
            )
        if self.format.dtype != "uint8":
            raise UnusableImage(path, f"has 8-bit pixels; expected is {self.format.dtype}")
        with border(path):  # palettes and transparent colors may be damaged
            image = to_channels(image, self.channels, self.background)
        pixels = np.atleast_3d(self.crop_and_resize(image, path, position)).transpose(2, 0, 1)
        pixels = np.ascontiguousarray(pixels)
        return pixels if self.format.eight_bit else self.format.normalize(pixels, path)

    def transform_raster(
        self, raster: Raster, path: Source, position: tuple[float, float]
    ) -> Pixels:
        """Transform a file beyond 8-bit pictures, channel by channel."""
        values = self.convert_channels(raster, path)
        planes: list[Shaped[np.ndarray, "h w"]] = []
        for k in range(self.channels):  # one by one: float32 may take four times as much memory
            plane = in_bands(partial(self.convert_numbers, path), values[..., k])
            planes.append(self.crop_and_resize(Image.fromarray(plane), path, position, k))
        pixels = np.stack(planes)
        return pixels if self.format.eight_bit else pixels.clip(-1, 1)  # Lanczos overshoots

    def convert_channels(self, raster: Raster, path: Source) -> Shaped[np.ndarray, "h w c"]:
        """Convert to the right channels, if the numbers are of the right type."""
        scaled = self.format.eight_bit and raster.dtype == "uint16"
        if raster.dtype != self.format.dtype and not scaled:
            raise UnusableImage(
                path,
                f"holds numbers of type {raster.dtype}; expected is {self.format}. Type and range "
                "must be the same in all files; value_range LOW HIGH states the range",
            )
        try:
            return rasters.to_channels(raster, self.channels, self.format.layout, self.background)
        except UserError as error:
            raise UnusableImage(path, str(error)) from error

    def convert_numbers(
        self, path: Source, values: Shaped[np.ndarray, "h w"]
    ) -> Shaped[np.ndarray, "h w"]:
        """Convert to the type and range of pixels in memory."""
        if not self.format.eight_bit:
            return self.format.normalize(values, path)
        return to_eight_bits(values) if values.dtype == np.uint16 else values

    def crop_and_resize(
        self,
        image: Image.Image,
        path: Source,
        position: tuple[float, float],
        channel: int | None = None,
    ) -> Shaped[np.ndarray, "..."]:
        """Bring an image to `shape`; channel: its number, if it is a single one of several."""
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
        box = crop_box(image.size, self.shape, position)
        return np.asarray(image.resize(self.shape, Image.Resampling.LANCZOS, box=box))

    def letterbox(self, image: Image.Image, channel: int | None) -> Image.Image:
        """Resize the whole image and center it between bars."""
        inner = letterbox_size(image.size, self.shape)
        image = image.resize(inner, Image.Resampling.LANCZOS)
        if channel is None:
            bars = Image.new("RGBA", self.shape, (*self.background, 0)).convert(image.mode)
        else:
            bars = Image.new(image.mode, self.shape, self.bar_level(channel, image.mode))
        bars.paste(image, ((self.shape[0] - inner[0]) // 2, (self.shape[1] - inner[1]) // 2))
        return bars

    def bar_level(self, channel: int, mode: str) -> float:
        """Return the number in the bars of one channel; mode: L for 8 bits, F for [-1, 1]."""
        luma = round(float(np.dot(self.background, LUMA)))
        levels = {1: (luma,), 3: self.background, 4: (*self.background, 0)}
        level = levels[self.channels][channel] if self.channels in levels else 0
        return level if mode == "L" else level / 127.5 - 1


def crop_box(
    size: tuple[int, int], shape: tuple[int, int], position: tuple[float, float]
) -> tuple[float, float, float, float]:
    """Return the largest box in an image of `size` with the aspect ratio of `shape`.

    position: of the box between left (0) and right (1), top (0) and bottom (1).
    """
    width = min(size[0], size[1] * shape[0] / shape[1])
    height = min(size[1], size[0] * shape[1] / shape[0])
    left, top = (size[0] - width) * position[0], (size[1] - height) * position[1]
    return left, top, left + width, top + height


def letterbox_size(size: tuple[int, int], shape: tuple[int, int]) -> tuple[int, int]:
    """Return the largest size within `shape` that has the aspect ratio of `size`."""
    scale = min(shape[0] / size[0], shape[1] / size[1])
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def draw_position(generator: torch.Generator | None) -> tuple[float, float]:
    """Draw the position of a random crop: from left (0) to right (1), from top (0) to bottom (1).

    Raises:
        UserError: there is no generator, because the pixels are kept.
    """
    if generator is None:
        refuse_random_crop()
    x, y = torch.rand(2, generator=generator, dtype=torch.float64).tolist()
    return x, y


def refuse_random_crop() -> NoReturn:
    """Raise a UserError: random crops make no sense where each image is read once."""
    raise UserError(
        "a random crop is new each time an image is read, and here each image is read once and "
        "its pixels are kept. Use crop center or letterbox."
    )


# Reading ------------------------------------------------------------------------------------------


def load_image(path: Source, shrink_to: int | None = None) -> Image.Image:
    """Decode a picture in 8 bits, upright; 16 bits are scaled, 65535 -> 255.

    shrink_to: decode a JPEG at 1/2, 1/4 or 1/8 of its size if both sides keep this many pixels.

    Raises:
        UnusableImage: it is not a picture, or it is damaged.
    """

    def convert(found: Picture | Raster) -> Image.Image:
        if not isinstance(found, Raster):
            return found.image
        pixels = found.interleaved(channels=None)
        channels = pixels.shape[2]
        if not found.color or found.dtype not in FULL_RANGES or channels > 4:
            raise UnusableImage(
                path, f"holds {channels} channels of {found.dtype} and is not a picture"
            )
        if found.dtype == "uint16":
            pixels = in_bands(to_eight_bits, pixels)
        return Image.fromarray(pixels[..., 0] if channels == 1 else pixels)

    return decode(path, convert, shrink_to)


def inspect_image(path: Source) -> tuple[tuple[int, int], str]:
    """Decode a file to its end; return (width, height) upright, and the kind of its pixels.

    The kind is Pillow's mode for an 8-bit picture; for other files it is the type of the numbers
    and how many channels there are, such as uint16x3. See `parse_mode`.

    Raises:
        UnusableImage: the file cannot be read.
    """

    def describe(found: Picture | Raster) -> tuple[tuple[int, int], str]:
        if not isinstance(found, Raster):
            return found.size, found.mode
        height, width, channels = found.interleaved(channels=None).shape
        return (width, height), f"{found.dtype}x{channels}"

    return decode(path, describe, shrink_to=1)


def parse_mode(mode: str) -> tuple[str, int]:
    """Return (type of the numbers as numpy names it, channels) of a kind that `inspect_image` gave.

    Pictures with fewer bits or other colors are read as 8-bit gray or RGB.
    """
    if mode not in EIGHT_BIT_MODES:
        dtype, _, channels = mode.partition("x")
        return dtype, int(channels)
    return "uint8", {"1": 1, "L": 1, "LA": 2, "PA": 4, "RGBA": 4}.get(mode, 3)


# Converting ---------------------------------------------------------------------------------------


def to_channels(image: Image.Image, channels: int, background: tuple[int, int, int]) -> Image.Image:
    """Convert to gray (1), RGB (3) or RGBA (4); without alpha the background shows through."""
    mode = {1: "L", 3: "RGB", 4: "RGBA"}[channels]
    if channels < 4 and image.has_transparency_data:
        return composite(image, mode, background)
    return image if image.mode == mode else image.convert(mode)


def composite(image: Image.Image, mode: str, background: tuple[int, int, int]) -> Image.Image:
    """Lay an image with transparency onto a color, some rows at a time to save memory."""
    result = Image.new(mode, image.size)
    rows = max(1, BAND_PIXELS // image.width)
    for top in range(0, image.height, rows):
        band = image.crop((0, top, image.width, min(top + rows, image.height))).convert("RGBA")
        canvas = Image.new("RGBA", band.size, (*background, 255))
        result.paste(Image.alpha_composite(canvas, band).convert(mode), (0, top))
    return result


def to_eight_bits(values: UInt16[np.ndarray, "*shape"]) -> UInt8[np.ndarray, "*shape"]:
    """Scale 0 ... 65535 to 0 ... 255, rounded."""
    return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)


def normalize_pixels(pixels: PixelTensor) -> Float[Tensor, "*b c h w"]:
    """Map 8-bit pixels to [-1, 1], the range of the networks; float pixels have it already."""
    return pixels if pixels.is_floating_point() else pixels.to(torch.float32) / 127.5 - 1


def to_uint8(images: Float[Tensor, "*b c h w"]) -> UInt8[Tensor, "*b c h w"]:
    """Map [-1, 1] to 8-bit pixels, rounded; values outside are clamped."""
    return ((images.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def to_pixels_like(images: Float[Tensor, "*b c h w"], pixels: PixelTensor) -> PixelTensor:
    """Map [-1, 1] to pixels of the same kind as `pixels`, to compare the two."""
    return images.float().clamp(-1, 1) if pixels.is_floating_point() else to_uint8(images)
