"""Image to image: a picture's latents with noise added, made clean again under a prompt.

Meng et al. 2021 (arXiv:2108.01073).
"""

from jaxtyping import Float
from torch import Tensor

from foundation.shapes import Latents
from ldm.schedule import Schedule
from ldm.tasks.base import Task, check_share
from ldm.timesteps import Times


class ImageToImage(Task):
    def __init__(self, latents: Float[Tensor, "1 c h w"], size: tuple[int, int], strength: float):
        """
        Args:
            latents: of the picture.
            size: of the picture, height and width.
            strength: share of the steps; 0 gives the picture back as the autoencoder does, and 1
                begins with noise alone, as text to image does.
        """
        check_share("strength", strength)
        self.latents, self.size, self.strength = latents, size, strength

    def start(self, noise: Latents, schedule: Schedule, times: Times) -> Latents:
        return noise if self.strength == 1 else noised(self.latents, noise, schedule, times)


def noised(
    z_0: Float[Tensor, "1 c h w"], noise: Latents, schedule: Schedule, times: Times
) -> Latents:
    """z_t at the first of the times, for every noise; z_0 itself if there is none."""
    if len(times) == 0:
        return z_0.expand_as(noise)
    alpha, sigma = schedule.exact(times[:1])
    return alpha[0] * z_0 + sigma[0] * noise
