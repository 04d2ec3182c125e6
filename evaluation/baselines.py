"""What a number of an autoencoder must be compared with: images that are made without a network.

All take and return 8-bit pixels.
"""

import io
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from PIL import Image
from torch import Tensor

from foundation.errors import UserError

EightBit = UInt8[Tensor, "n c h w"]

BITS_PER_NUMBER = 16  # of a latent: half precision, as latent caches store it
QUALITIES = (1, 95)  # of JPEG: Pillow's range without the settings that it advises against
JPEG_CHANNELS = {1: "L", 3: "RGB"}
START_OF_SCAN = b"\xff\xda"


def bicubic_round_trip(pixels: EightBit, factor: int) -> EightBit:
    """Shrink images by a factor and enlarge them again, with antialiased bicubic interpolation.

    The small image has as many positions as the latents, and as many channels as the image.
    """
    height, width = pixels.shape[-2:]
    small = resized(pixels.float(), max(1, height // factor), max(1, width // factor)).round()
    return resized(small, height, width).round().to(torch.uint8)


def resized(
    pixels: Float[Tensor, "n c h w"], height: int, width: int
) -> Float[Tensor, "n c height width"]:
    return F.interpolate(pixels, (height, width), mode="bicubic", antialias=True).clamp(0, 255)


@dataclass(frozen=True)
class JpegImages:
    """Images after JPEG, each at the best quality that fits into a number of bits.

    Args:
        size: bits of each picture without its headers.
        fits: whether even the lowest quality needs no more bits than there are.
    """

    pixels: EightBit
    size: Int[Tensor, " n"]
    fits: torch.Tensor


def jpeg_at(pixels: EightBit, bits: int) -> JpegImages:
    """Encode each image as JPEG in at most `bits` bits, and decode it.

    Counted are the bits after the headers, which hold the tables: what belongs to the method, not
    to the picture, as the weights of a decoder do. Where even quality 1 needs more, it is used.

    Raises:
        UserError: JPEG has no such pictures: it takes 1 or 3 channels.
    """
    if pixels.shape[1] not in JPEG_CHANNELS:
        raise UserError(f"JPEG has pictures of 1 or 3 channels, not of {pixels.shape[1]}.")
    found = [best_jpeg(image, bits) for image in pixels]
    size = torch.tensor([size for _, size in found])
    return JpegImages(torch.stack([image for image, _ in found]), size, size <= bits)


def best_jpeg(image: UInt8[Tensor, "c h w"], bits: int) -> tuple[UInt8[Tensor, "c h w"], int]:
    """Return one image at the best quality that fits, and its bits; bisection over qualities."""
    low, high = QUALITIES
    content = encode_jpeg(image, low)
    if scan_bits(content) <= bits:
        while low < high:
            middle = (low + high + 1) // 2
            attempt = encode_jpeg(image, middle)
            if scan_bits(attempt) <= bits:
                low, content = middle, attempt
            else:
                high = middle - 1
    decoded = np.atleast_3d(np.array(Image.open(io.BytesIO(content))))
    return torch.from_numpy(decoded).permute(2, 0, 1), scan_bits(content)


def encode_jpeg(image: UInt8[Tensor, "c h w"], quality: int) -> bytes:
    """Return the bytes of a JPEG file with Huffman tables of its own."""
    array = image.permute(1, 2, 0).numpy()
    picture = Image.fromarray(array[..., 0] if len(image) == 1 else array)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality, optimize=True)
    return buffer.getvalue()


def scan_bits(content: bytes) -> int:
    """Return how many bits of a JPEG file follow its headers."""
    start = content.index(START_OF_SCAN)
    header = int.from_bytes(content[start + 2 : start + 4], "big")
    return 8 * (len(content) - start - 2 - header - 2)  # the file ends with a marker of two bytes
