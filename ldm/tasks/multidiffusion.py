"""Pictures larger than a network was trained on, through overlapping windows of the size it knows.

MultiDiffusion, Bar-Tal et al. 2023 (arXiv:2302.08113): at every time the network sees one window
after the other, and where they overlap, the mean of what it says is taken. So memory is that of a
window, and neighbors agree, since they were agreed upon at every step.
"""

from itertools import product
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from foundation.errors import UserError
from foundation.shapes import Estimates, Network, Timesteps
from foundation.tiling import blend_ramp, tile_starts


def windowed(network: Network, side: int, overlap: int) -> Network:
    """The same network for latents of any size.

    Args:
        side: of a window, in latent pixels; what is smaller is seen whole.
        overlap: that neighbors share at least, in latent pixels. The mean is weighted by a ramp
            over it, so that a window's border, where it sees least, counts least.
    """
    if not 0 <= overlap < side:
        raise UserError(
            f"windows of {side} latent pixels cannot overlap by {overlap}; give 0 to {side - 1}."
        )

    def call(latents: Float[Tensor, "b c_in h w"], t: Timesteps, *more: Any) -> Estimates:
        height, width = latents.shape[-2:]
        if max(height, width) <= side:
            return network(latents, t, *more)
        weight = torch.outer(
            blend_ramp(min(side, height), overlap), blend_ramp(min(side, width), overlap)
        )
        weight, total, weights = weight.to(latents), 0.0, latents.new_zeros(height, width)
        tops = tile_starts(height, side, overlap, evenly=True)
        lefts = tile_starts(width, side, overlap, evenly=True)
        for top, left in product(tops, lefts):
            rows, columns = slice(top, top + side), slice(left, left + side)
            output = network(latents[:, :, rows, columns].contiguous(), t, *more)
            if isinstance(total, float):
                total = output.new_zeros(*output.shape[:2], height, width)
            total[:, :, rows, columns] += output * weight
            weights[rows, columns] += weight
        return total / weights

    return call
