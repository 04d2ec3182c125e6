"""Pictures to the numbers that networks take, and back."""

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from foundation.errors import NotFiniteError, UserError

MOST_PIXELS = 178_956_970  # beyond, Pillow takes a file for an attack
MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # by channels


def to_images(picture: Image.Image, channels: int) -> Float[Tensor, "1 c h w"]:
    """[-1, 1]. The picture must have as many channels."""
    pixels = np.atleast_3d(np.asarray(picture))
    if pixels.dtype != np.uint8 or pixels.shape[-1] != channels:
        raise UserError(
            f"the picture is of mode {picture.mode}; this model takes {channels} channels of 8 "
            f"bits: picture.convert({MODES.get(channels, '?')!r})."
        )
    return torch.tensor(pixels).permute(2, 0, 1)[None].float() / 127.5 - 1


def to_picture(image: Float[Tensor, "c h w"]) -> Image.Image:
    """From around [-1, 1], rounded to 8 bits. Of other than 1, 3 or 4 channels, the first.

    Raises:
        FloatingPointError: a value is not finite; a black picture would not say so.
    """
    if not image.isfinite().all():
        raise NotFiniteError("the decoder gave values that are not finite. Check the weights.")
    image = image if len(image) in MODES else image[:1]
    pixels = ((image.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    pixels = pixels.cpu().permute(1, 2, 0).numpy()
    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)


def to_mask(mask: Image.Image, size: tuple[int, int]) -> Float[Tensor, "1 1 h w"]:
    """1 (white) where to draw, 0 (black) where to keep. size: height and width of the picture."""
    if (mask.height, mask.width) != size:
        raise UserError(
            f"the mask is {mask.width}x{mask.height}, the picture {size[1]}x{size[0]}; they must "
            "be of one size."
        )
    share = torch.tensor(np.asarray(mask.convert("L")), dtype=torch.float32)[None, None] / 255
    if not share.any():
        raise UserError("the mask is all black, so nothing is to be drawn; white is drawn anew.")
    return share


def check_pixels(width: int, height: int) -> None:
    """Refuses sizes that Pillow would not open again; memory mostly ends before."""
    if width * height > MOST_PIXELS:
        raise UserError(
            f"a picture of {width}x{height} is asked for, which is {width * height / 1e6:.0f} "
            f"million pixels; at most {MOST_PIXELS / 1e6:.0f} million can be opened again."
        )


def check_size(picture: Image.Image, factor: int, smallest: int) -> None:
    """factor: by which both sides must be divisible. smallest: that a side may be."""
    width, height = picture.size
    if min(width, height) < smallest:
        raise UserError(
            f"the picture is {width}x{height} pixels; both sides must be at least {smallest}."
        )
    if width % factor or height % factor:
        near = [max(smallest, round(side / factor) * factor) for side in (width, height)]
        raise UserError(
            f"the picture is {width}x{height} pixels; autoencoder and U-Net together shrink both "
            f"sides {factor} times, so both must be multiples of {factor}. Resize it, for example "
            f"to {near[0]}x{near[1]} (--width {near[0]} --height {near[1]})."
        )
