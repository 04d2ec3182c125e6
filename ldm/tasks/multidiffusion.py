"""Pictures larger than those of the training, through overlapping windows of the trained size.

MultiDiffusion, Bar-Tal et al. 2023 (arXiv:2302.08113): in every step the network sees one window
after the other, and where they overlap, the mean of its outputs is taken. So memory is that of one
window, and neighbors fit together, since they are averaged in every step.
"""

from itertools import product

import torch
from jaxtyping import Float, Real
from torch import Tensor

from foundation.errors import UserError
from foundation.shapes import Estimates, Timesteps
from foundation.tiling import blend_ramp, tile_starts
from ldm.denoiser import BoundNetwork


class WindowedNetwork:
    """A bound network for latents of any size, called window by window."""

    def __init__(self, network: BoundNetwork, side: int, overlap: int):
        """
        Args:
            side: that of a window, in latent pixels; smaller latents are seen whole.
            overlap: what neighbors share at least, in latent pixels. The mean is weighted by a ramp
                over it, so that the border of a window, where it sees least, counts least.

        Raises:
            UserError: an overlap that is not smaller than the side.
        """
        if not 0 <= overlap < side:
            raise UserError(
                f"windows of {side} latent pixels cannot overlap by {overlap}; give 0 to "
                f"{side - 1}."
            )
        self.network, self.side, self.overlap = network, side, overlap

    def __call__(
        self,
        latents: Float[Tensor, "b c_in h w"],
        t: Timesteps,
        class_labels: Real[Tensor, " b"] | None = None,
    ) -> Estimates:
        more = () if class_labels is None else (class_labels,)
        height, width = latents.shape[-2:]
        side, overlap = self.side, self.overlap
        if max(height, width) <= side:
            return self.network(latents, t, *more)
        rows, columns = (blend_ramp(min(side, x), overlap) for x in (height, width))
        weight = torch.outer(rows, columns).to(latents)
        weights = latents.new_zeros(height, width)
        total: Tensor | None = None
        tops = tile_starts(height, side, overlap, evenly=True)
        lefts = tile_starts(width, side, overlap, evenly=True)
        for top, left in product(tops, lefts):
            window = slice(top, top + side), slice(left, left + side)
            output = self.network(latents[:, :, *window].contiguous(), t, *more)
            if total is None:
                total = output.new_zeros(*output.shape[:2], height, width)
            total[:, :, *window] += output * weight
            weights[window] += weight
        assert total is not None  # there is at least one window
        return total / weights
