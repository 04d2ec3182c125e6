"""DDIM inversion: the noisy latents from which a deterministic sampler would draw a given picture.

Drawn again from there under another prompt, the picture keeps its composition: editing, if the
inversion was told what the picture shows, and style transfer, if it was not. Song et al. 2021
(arXiv:2010.02502), section 4.3; for editing Mokady et al. 2022 (arXiv:2211.09794).
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from foundation.errors import NotFiniteError
from foundation.shapes import Denoise, Latents
from ldm.samplers.interpolation import slerp
from ldm.schedule import Schedule
from ldm.tasks.base import check_share
from ldm.tasks.img2img import ImageToImage
from ldm.timesteps import Times


@torch.no_grad()
def invert(
    denoise: Denoise, z_0: Latents, schedule: Schedule, times: Times, rounds: int = 3
) -> Latents:
    """z_t at the first of the times, from which `ddim` along them gives z_0 again.

    A step of ddim is solved for its beginning, which the network would have to see to say how it
    goes. So its end stands in for it in the first call, and what that gave in the next ones (Pan et
    al. 2023, arXiv:2309.04907): more rounds come closer, and one is the usual inversion.
    """
    alpha, sigma = schedule.exact(times)
    z, alpha_s, sigma_s = z_0, alpha.new_ones(()), sigma.new_zeros(())  # the end of a step
    for i in reversed(range(len(times))):
        z_t = z
        for _ in range(rounds):
            estimate = denoise(z_t, times[i].expand(len(z)))
            if alpha[i] > sigma[i] or sigma_s == 0:
                noise = (z_t - alpha[i] * estimate) / sigma[i]
                z_t = alpha[i] / alpha_s * (z - sigma_s * noise) + sigma[i] * noise
            else:  # the same, as converges where there is more noise than picture
                z_t = sigma[i] / sigma_s * (z - alpha_s * estimate) + alpha[i] * estimate
        z, alpha_s, sigma_s = z_t, alpha[i], sigma[i]
    return z


class FromInversion(ImageToImage):
    """Image to image whose noise is the one that belongs to the picture, or near it."""

    def __init__(
        self,
        latents: Float[Tensor, "1 c h w"],
        size: tuple[int, int],
        strength: float,
        invert: Callable[[Times], Latents],
        variation: float = 0.0,
    ):
        """
        Args:
            invert: gives the picture's latents at the first of these times.
            variation: how far each image goes from there to noise of its own; 1 is image to image.
        """
        super().__init__(latents, size, strength)
        check_share("variation", variation)
        self.invert, self.variation = invert, variation
        self.known: dict[tuple[float, ...], Latents] = {}  # by the times: one inversion per call

    def start(self, noise: Latents, schedule: Schedule, times: Times) -> Latents:
        if len(times) == 0:
            return super().start(noise, schedule, times)
        key = tuple(times.tolist())
        if key not in self.known:
            self.known = {key: finite(self.invert(times))}
        z_t = self.known[key].expand_as(noise)
        if self.variation == 0:
            return z_t
        alpha, sigma = (x[0] for x in schedule.exact(times[:1]))
        own = slerp((z_t - alpha * self.latents) / sigma, noise, self.variation)
        return alpha * self.latents + sigma * own


def finite(latents: Latents) -> Latents:
    if not latents.isfinite().all():
        raise NotFiniteError("inverting the picture gave values that are not finite.")
    return latents
