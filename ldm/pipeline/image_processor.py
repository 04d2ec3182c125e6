"""PIL images to the tensors that networks take, and back."""

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from foundation.errors import NotFiniteError, UserError

MAX_PIXELS = 178_956_970  # Pillow refuses to open larger files (protection from bombs)
PIL_MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # by number of channels


def image_to_tensor(image: Image.Image, channels: int) -> Float[Tensor, "1 c h w"]:
    """Convert an 8-bit PIL image to a float tensor in [-1, 1].

    Raises:
        UserError: the image has another number of channels, or not 8 bits.
    """
    pixels = np.atleast_3d(np.asarray(image))
    if pixels.dtype != np.uint8 or pixels.shape[-1] != channels:
        raise UserError(
            f"the picture is of mode {image.mode}; this model takes {channels} channels of 8 "
            f"bits: picture.convert({PIL_MODES.get(channels, '?')!r})."
        )
    return torch.tensor(pixels).permute(2, 0, 1)[None].float() / 127.5 - 1


def tensor_to_image(image: Float[Tensor, "c h w"]) -> Image.Image:
    """Convert a float image in [-1, 1] to an 8-bit PIL image; values outside are clipped.

    Of an image with a number of channels that PIL cannot show, only the first channel is taken.

    Raises:
        NotFiniteError: a value is infinity or NaN, which would become a black pixel.
    """
    if not image.isfinite().all():
        raise NotFiniteError("the decoder gave values that are not finite. Check the weights.")
    image = image if len(image) in PIL_MODES else image[:1]
    pixels = ((image.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    pixels = pixels.cpu().permute(1, 2, 0).numpy()
    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)


def mask_to_tensor(mask: Image.Image, size: tuple[int, int]) -> Float[Tensor, "1 1 h w"]:
    """Convert a mask to a tensor: 1 (white) where to draw, 0 (black) where to keep the image.

    size: height and width of the image.

    Raises:
        UserError: the mask has another size than the image, or is all black.
    """
    if (mask.height, mask.width) != size:
        raise UserError(
            f"the mask is {mask.width}x{mask.height}, the picture {size[1]}x{size[0]}; they must "
            "have the same size."
        )
    weights = torch.tensor(np.asarray(mask.convert("L")), dtype=torch.float32)[None, None] / 255
    if not weights.any():
        raise UserError("the mask is all black, so nothing would be drawn; white is drawn anew.")
    return weights


def check_pixel_count(width: int, height: int) -> None:
    """Refuse sizes that Pillow would not open again."""
    if width * height > MAX_PIXELS:
        raise UserError(
            f"a picture of {width}x{height} is asked for, which is {width * height / 1e6:.0f} "
            f"million pixels; Pillow opens at most {MAX_PIXELS / 1e6:.0f} million."
        )


def check_image_size(image: Image.Image, factor: int, smallest: int) -> None:
    """Refuse an image whose sides are not multiples of `factor`, or are smaller than `smallest`."""
    width, height = image.size
    if min(width, height) < smallest:
        raise UserError(
            f"the picture is {width}x{height} pixels; both sides must be at least {smallest}."
        )
    if width % factor or height % factor:
        near = [max(smallest, round(side / factor) * factor) for side in (width, height)]
        raise UserError(
            f"the picture is {width}x{height} pixels; autoencoder and U-Net together shrink both "
            f"sides {factor} times, so both must be multiples of {factor}. Resize it, for example "
            f"to {near[0]}x{near[1]}."
        )
