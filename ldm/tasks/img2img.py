"""Image to image: noise is added to a picture's latents, and removed again under a prompt.

SDEdit, Meng et al. 2021 (arXiv:2108.01073).
"""

from jaxtyping import Float
from PIL import Image
from torch import Tensor

from foundation.shapes import Latents
from ldm.pipeline.image_processor import check_image_size
from ldm.schedule import Schedule
from ldm.tasks.base import Task, TaskPipeline, check_share
from ldm.timesteps import Times


def img2img(pipeline: TaskPipeline, picture: Image.Image, strength: float = 0.6) -> Task:
    """Make the task of drawing a picture again under a prompt.

    strength: 0 returns the picture as the autoencoder reconstructs it, 1 ignores it.

    Raises:
        UserError: the picture has a size or mode that the model cannot take.
    """
    check_image_size(picture, pipeline.factor, pipeline.factor)
    return ImageToImage(pipeline.encode(picture), (picture.height, picture.width), strength)


class ImageToImage(Task):
    """Sampling that starts from a noisy picture in place of noise."""

    def __init__(self, latents: Float[Tensor, "1 c h w"], size: tuple[int, int], strength: float):
        """
        Args:
            latents: those of the picture.
            size: height and width of the picture in pixels.
            strength: share of the steps that are taken; 0 returns the picture as the autoencoder
                reconstructs it, and 1 begins with noise alone, as text to image does.
        """
        check_share("strength", strength)
        self.latents, self.size, self.strength = latents, size, strength

    def initial_latents(self, noise: Latents, schedule: Schedule, times: Times) -> Latents:
        return noise if self.strength == 1 else add_noise(self.latents, noise, schedule, times)


def add_noise(
    z_0: Float[Tensor, "1 c h w"], noise: Latents, schedule: Schedule, times: Times
) -> Latents:
    """Compute z_t at the first of the times, for every noise; z_0 itself if there are no times."""
    if len(times) == 0:
        return z_0.expand_as(noise)
    alpha, sigma = schedule.exact(times[:1])
    return alpha[0] * z_0 + sigma[0] * noise
