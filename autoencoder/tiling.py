"""Large images with bounded memory: one image at a time, or one tile at a time.

Tiles overlap and are blended linearly. The result is not exactly that of the whole image, because
GroupNorm and attention see one tile instead of the whole: expect small differences of tone, spread
over the width of the overlap, and no visible seams.
"""

from collections.abc import Callable
from itertools import product

import torch
from torch import Tensor

from autoencoder.model import Autoencoder, check_images, check_latents
from autoencoder.posterior import Posterior
from foundation.errors import UserError
from foundation.shapes import Images, Latents
from foundation.tiling import blend_ramp, tile_starts

TILE = 64  # side of a tile in latent pixels; 512 image pixels at Stable Diffusion's factor 8
OVERLAP = 16  # latent pixels that neighbors share


def encode_sliced(autoencoder: Autoencoder, images: Images) -> Posterior:
    """Encode one image at a time."""
    posteriors = [autoencoder.encode(image) for image in torch.split(images, 1)]
    return Posterior(
        torch.cat([posterior.mean for posterior in posteriors]),
        torch.cat([posterior.logvar for posterior in posteriors]),
    )


def decode_sliced(autoencoder: Autoencoder, latents: Latents) -> Images:
    """Decode one image at a time."""
    return torch.cat([autoencoder.decode(image) for image in torch.split(latents, 1)])


def encode_tiled(
    autoencoder: Autoencoder, images: Images, tile: int = TILE, overlap: int = OVERLAP
) -> Posterior:
    """Encode one tile at a time. Mean and log-variance are blended in the same way.

    Args:
        tile, overlap: side of a tile and what neighbors share, in latent pixels, so that tiles of
            the images always fit the factor.
    """
    factor = autoencoder.factor
    check_images(images, autoencoder.config.in_channels, factor)

    def encode_tile(top: int, left: int, height: int, width: int) -> Tensor:
        rows = slice(top * factor, (top + height) * factor)
        columns = slice(left * factor, (left + width) * factor)
        posterior = autoencoder.encode(images[:, :, rows, columns], check=False)
        return torch.cat([posterior.mean, posterior.logvar], dim=1)

    height, width = (side // factor for side in images.shape[-2:])
    moments = blend_tiles(encode_tile, height, width, tile, overlap)
    return Posterior(*moments.chunk(2, dim=1))


def decode_tiled(
    autoencoder: Autoencoder, latents: Latents, tile: int = TILE, overlap: int = OVERLAP
) -> Images:
    """Decode one tile at a time.

    Args:
        tile, overlap: side of a tile and what neighbors share, in latent pixels.
    """
    check_latents(latents, autoencoder.config.latent_channels)

    def decode_tile(top: int, left: int, height: int, width: int) -> Tensor:
        return autoencoder.decode(latents[:, :, top : top + height, left : left + width])

    height, width = latents.shape[-2:]
    return blend_tiles(decode_tile, height, width, tile, overlap, scale=autoencoder.factor)


def blend_tiles(
    compute: Callable[[int, int, int, int], Tensor],
    height: int,
    width: int,
    tile: int,
    overlap: int,
    *,
    scale: int = 1,
) -> Tensor:
    """Put together what `compute(top, left, height, width)` returns for overlapping tiles.

    Each tile is weighted by a ramp that falls linearly towards its borders; the sum is divided by
    the sum of the weights.

    Args:
        height, width: the area to cover, in the unit of `tile`, `overlap` and compute's arguments.
        scale: how many times larger each side of the result is than the area.
    """
    if not 0 <= overlap < tile:
        raise UserError(f"tiles of {tile} cannot overlap by {overlap}; give 0 to {tile - 1}.")
    tall, wide = min(tile, height), min(tile, width)
    weight = torch.outer(
        blend_ramp(tall * scale, overlap * scale), blend_ramp(wide * scale, overlap * scale)
    )
    weights = weight.new_zeros(height * scale, width * scale)
    total = None
    for top, left in product(tile_starts(height, tile, overlap), tile_starts(width, tile, overlap)):
        result = compute(top, left, tall, wide)
        if total is None:
            total = result.new_zeros(*result.shape[:2], height * scale, width * scale)
            weight, weights = weight.to(result), weights.to(result)
        rows = slice(top * scale, (top + tall) * scale)
        columns = slice(left * scale, (left + wide) * scale)
        total[:, :, rows, columns] += result * weight
        weights[rows, columns] += weight
    assert total is not None, "there is always a tile"
    return total.div_(weights)
