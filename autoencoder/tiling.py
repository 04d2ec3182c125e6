"""Large images with bounded memory: one image at a time, or one tile at a time.

Tiles overlap and are blended linearly. They are not exactly what the whole image would give,
because GroupNorm and the attention look at one tile instead of the whole: expect small differences
of tone, spread over the width of the overlap, and no visible seams.
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
    """`encode`, one image at a time."""
    parts = [autoencoder.encode(image) for image in images.split(1)]
    return Posterior(
        torch.cat([part.mean for part in parts]), torch.cat([part.logvar for part in parts])
    )


def decode_sliced(autoencoder: Autoencoder, latents: Latents) -> Images:
    """`decode`, one image at a time."""
    return torch.cat([autoencoder.decode(image) for image in latents.split(1)])


def encode_tiled(
    autoencoder: Autoencoder, images: Images, tile: int = TILE, overlap: int = OVERLAP
) -> Posterior:
    """`encode`, one tile at a time; mean and log-variance are blended alike.

    tile, overlap: in latent pixels, so that tiles of images always fit the factor.
    """
    factor = autoencoder.factor
    check_images(images, autoencoder.config.in_channels, factor)

    def moments(top: int, left: int, height: int, width: int) -> Tensor:
        rows = slice(top * factor, (top + height) * factor)
        columns = slice(left * factor, (left + width) * factor)
        posterior = autoencoder.encode(images[:, :, rows, columns], check=False)
        return torch.cat([posterior.mean, posterior.logvar], dim=1)

    height, width = (side // factor for side in images.shape[-2:])
    return Posterior(*blend(moments, height, width, tile, overlap, scale=1).chunk(2, dim=1))


def decode_tiled(
    autoencoder: Autoencoder, latents: Latents, tile: int = TILE, overlap: int = OVERLAP
) -> Images:
    """`decode`, one tile at a time. tile, overlap: in latent pixels."""
    check_latents(latents, autoencoder.config.latent_channels)

    def pixels(top: int, left: int, height: int, width: int) -> Tensor:
        return autoencoder.decode(latents[:, :, top : top + height, left : left + width])

    return blend(pixels, *latents.shape[-2:], tile, overlap, scale=autoencoder.factor)


def blend(
    compute: Callable[[int, int, int, int], Tensor],
    height: int,
    width: int,
    tile: int,
    overlap: int,
    scale: int,
) -> Tensor:
    """Puts together what `compute(top, left, height, width)` gives for overlapping tiles.

    Each tile is weighted by a ramp that falls linearly towards its borders; the sum is divided by
    the sum of the weights. scale: how many times larger the result is than the positions given.
    """
    if not 0 <= overlap < tile:
        raise UserError(f"tiles of {tile} cannot overlap by {overlap}; give 0 to {tile - 1}.")
    total, weights = None, None
    tall, wide = min(tile, height), min(tile, width)
    for top, left in product(tile_starts(height, tile, overlap), tile_starts(width, tile, overlap)):
        result = compute(top, left, tall, wide)
        weight = torch.outer(
            blend_ramp(tall * scale, overlap * scale), blend_ramp(wide * scale, overlap * scale)
        )
        weight = weight.to(result)
        if total is None:
            total = result.new_zeros(*result.shape[:2], height * scale, width * scale)
            weights = result.new_zeros(height * scale, width * scale)
        rows = slice(top * scale, (top + tall) * scale)
        columns = slice(left * scale, (left + wide) * scale)
        total[:, :, rows, columns] += result * weight
        weights[rows, columns] += weight
    return total.div_(weights)
