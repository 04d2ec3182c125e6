"""Image files -> uint8 pixels (c, h, w), and pixels <-> what the networks take.

The same few steps for every file, in this order: decode, turn upright (EXIF), 8 bits, alpha onto a
color, channels, crop and resize. Training, caches and metrics share them.

- 16-bit gray is scaled, 65535 -> 255; Pillow's own conversion would clip at 255.
- Alpha is composited before resizing, so no hidden color bleeds into the edges.
- Resizing is Pillow's Lanczos, antialiased because its kernel widens as the picture shrinks. It
  keeps more detail than bicubic; the price, slight ringing at hard edges, is hardly seen at these
  scales. One resizer everywhere: which one matters less than that it is the same.
- Color profiles (ICC) are not applied, and of animations the first frame is used.
"""

import struct
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image, ImageOps
from torch import Tensor

from imagetext.members import Source

Image.init()  # otherwise Pillow knows TIFF and WebP only after a first failure
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")
EXTENSIONS = frozenset((".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"))
EIGHT_BITS = frozenset(("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"))
SIXTEEN_BITS = frozenset(("I;16", "I;16B", "I;16L", "I;16N"))
ORIENTATION = 0x0112  # EXIF tag; 5 to 8 exchange width and height

Crop = Literal["center", "random", "letterbox", "none"]
Pixels = UInt8[np.ndarray, "c h w"]


class UnusableImage(ValueError):
    """A file that cannot be trained on, and why."""

    def __init__(self, path: Source, reason: str):
        super().__init__(path, reason)  # as they came, so that it survives pickling
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


@dataclass(frozen=True)
class ImageTransform:
    """File -> uint8 pixels (channels, height, width). Calling it opens the file.

    Args:
        size: side of the square result, in pixels.
        channels: 1 (luma, ITU-R 601), 3 (RGB) or 4 (RGBA, alpha kept).
        crop: how a picture of another shape becomes a square.
            center: the largest centered square; what lies outside is lost.
            random: the largest square, anywhere; needs a generator.
            letterbox: the whole picture, between bars of `background` (transparent with alpha).
            none: never cut, never resized; the file must have this size already.
        background: RGB, 0 to 255, what shows through transparent pixels.
    """

    size: int
    channels: int = 3
    crop: Crop = "center"
    background: tuple[int, int, int] = (255, 255, 255)
    sides: tuple[int, int] | None = None  # width and height, if the result is no square

    def __post_init__(self):
        if self.size < 1:
            raise ValueError(f"image size is {self.size} pixels; it must be at least 1.")
        if self.channels not in (1, 3, 4):
            raise ValueError(
                f"{self.channels} channels; image files give 1 (gray), 3 (RGB) or 4 (RGBA)."
            )
        if len(self.background) != 3 or not all(0 <= v <= 255 for v in self.background):
            raise ValueError(f"background {self.background} must be red, green, blue in 0 to 255.")

    def __call__(self, path: Source, generator: torch.Generator | None = None) -> Pixels:
        image = load_image(path, shrink_to=None if self.crop == "none" else 2 * max(self.shape))
        image = to_channels(image, self.channels, self.background)
        pixels = np.asarray(self.fit(image, path, generator))
        return np.ascontiguousarray(np.atleast_3d(pixels).transpose(2, 0, 1))

    @property
    def shape(self) -> tuple[int, int]:
        """Width and height of the result."""
        return self.sides or (self.size, self.size)

    def describe(self) -> dict:
        """All that the pixels depend on besides the file, as JSON; part of a cache's identity."""
        described = {"version": 1, "resample": "lanczos", **asdict(self)}
        return described | {"background": list(self.background)}

    def fit(
        self, image: Image.Image, path: Source, generator: torch.Generator | None
    ) -> Image.Image:
        if self.crop == "letterbox":
            return self.letterbox(image)
        if self.crop == "none":
            if image.size != self.shape:
                raise UnusableImage(
                    path,
                    f"is {image.width}x{image.height} pixels, and without cropping it must be "
                    f"{self.shape[0]}x{self.shape[1]}",
                )
            return image
        assert self.crop in ("center", "random"), self.crop
        width = min(image.width, image.height * self.shape[0] / self.shape[1])
        height = min(image.height, image.width * self.shape[1] / self.shape[0])
        where = (0.5, 0.5) if self.crop == "center" else draw_position(generator)
        left = (image.width - width) * where[0]
        top = (image.height - height) * where[1]
        box = (left, top, left + width, top + height)
        return image.resize(self.shape, Image.Resampling.LANCZOS, box=box)

    def letterbox(self, image: Image.Image) -> Image.Image:
        scale = min(self.shape[0] / image.width, self.shape[1] / image.height)
        inner = [max(1, round(side * scale)) for side in image.size]
        image = image.resize(inner, Image.Resampling.LANCZOS)
        bars = Image.new("RGBA", self.shape, (*self.background, 0)).convert(image.mode)
        bars.paste(image, ((self.shape[0] - inner[0]) // 2, (self.shape[1] - inner[1]) // 2))
        return bars


def draw_position(generator: torch.Generator | None) -> list[float]:
    """Where a random crop lies between left (0) and right (1), top (0) and bottom (1)."""
    if generator is None:
        raise ValueError(
            "a random crop is new at every reading, and here each image is read once and kept. "
            "Use crop center or letterbox."
        )
    return torch.rand(2, generator=generator, dtype=torch.float64).tolist()


def load_image(path: Source, shrink_to: int | None = None) -> Image.Image:
    """Decodes and turns upright. Raises UnusableImage, also for a file that ends too early.

    shrink_to: a JPEG may be decoded at 1/2, 1/4 or 1/8 if both sides keep so many pixels; large
        photos then load several times faster.
    """
    image, _ = open_image(path, shrink_to)
    return image


def inspect_image(path: Source) -> tuple[tuple[int, int], str]:
    """Width and height upright, and Pillow's mode, of a file that decodes to its end."""
    image, size = open_image(path, shrink_to=1)
    return size, image.mode


def open_image(path: Source, shrink_to: int | None) -> tuple[Image.Image, tuple[int, int]]:
    """The upright picture, and the size it has in the file, upright."""
    try:
        if path.stat().st_size == 0:
            raise UnusableImage(path, "is empty (0 bytes)")
        with path.open("rb") as file, Image.open(file, formats=FORMATS) as image:
            size = image.size
            if image.mode not in EIGHT_BITS | SIXTEEN_BITS:
                raise UnusableImage(
                    path,
                    f"has pixels of kind {image.mode!r}, whose range is not known; save it as "
                    "8-bit or 16-bit gray, RGB or RGBA",
                )
            if shrink_to is not None:
                image.draft(None, (shrink_to, shrink_to))
            image.load()
            if image.getexif().get(ORIENTATION, 1) >= 5:
                size = size[::-1]
            return ImageOps.exif_transpose(image), size
    except UnusableImage:
        raise
    except Image.UnidentifiedImageError as error:
        raise UnusableImage(path, "is not an image, whatever its name says") from error
    except (OSError, SyntaxError, ValueError, EOFError, struct.error) as error:
        raise UnusableImage(path, f"cannot be read: {error}") from error
    except Image.DecompressionBombError as error:
        raise UnusableImage(path, f"is too large: {error}") from error


def to_channels(image: Image.Image, channels: int, background: tuple[int, int, int]) -> Image.Image:
    """8 bits, and gray, RGB or RGBA."""
    if image.mode in SIXTEEN_BITS:
        pixels = (np.asarray(image).astype(np.uint32) + 128) // 257  # 65535 -> 255, rounded
        image = Image.fromarray(pixels.astype(np.uint8))
    if channels == 4:
        return image.convert("RGBA")
    if image.has_transparency_data:
        canvas = Image.new("RGBA", image.size, (*background, 255))
        image = Image.alpha_composite(canvas, image.convert("RGBA"))
    return image.convert("RGB" if channels == 3 else "L")


def to_model(pixels: UInt8[Tensor, "*b c h w"]) -> Float[Tensor, "*b c h w"]:
    """0 ... 255 -> [-1, 1]"""
    return pixels.to(torch.float32) / 127.5 - 1


def to_uint8(images: Float[Tensor, "*b c h w"]) -> UInt8[Tensor, "*b c h w"]:
    """[-1, 1] -> 0 ... 255, rounded; what lies outside is clamped."""
    return ((images.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
