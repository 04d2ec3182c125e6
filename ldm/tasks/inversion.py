"""DDIM inversion: the noisy latents from which a deterministic sampler would draw a given picture.

Drawn again from there under another prompt, the picture keeps its composition. With a source prompt
that describes the picture this edits it; without one it transfers a style. Song et al. 2021
(arXiv:2010.02502), section 4.3; for editing Mokady et al. 2022 (arXiv:2211.09794).
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from foundation.errors import NotFiniteError
from foundation.shapes import Denoise, Latents
from ldm.guidance import Guidance, GuidedDenoiser
from ldm.pipeline.image_processor import check_image_size
from ldm.samplers.noise import slerp
from ldm.schedule import Schedule
from ldm.tasks.base import Task, TaskPipeline, check_share
from ldm.tasks.img2img import ImageToImage
from ldm.timesteps import Times


def edit(
    pipeline: TaskPipeline,
    picture: Image.Image,
    strength: float = 1.0,
    *,
    source_prompt: str = "",
    variation: float = 0.0,
    window: int | None = None,
) -> Task:
    """Make the task of editing a picture, transferring a style, or drawing variations of it.

    Args:
        strength: how far back to noise the picture is followed; less keeps more of it.
        source_prompt: describes the picture as it is, for editing.
        variation: how much of each image's noise is its own, 0 to 1; above 0 to draw several
            different variations of one picture.
        window: side of the windows in pixels, as the pipeline is given.

    Raises:
        UserError: the picture has a size or mode that the model cannot take.
    """
    check_image_size(picture, pipeline.factor, pipeline.factor)
    latents = pipeline.encode(picture)
    denoiser = pipeline.make_denoiser(window)
    conds = pipeline.condition_on(source_prompt)

    def invert_along(times: Times) -> Latents:
        denoise = GuidedDenoiser(denoiser, conds, conds[0][0], Guidance(scale=1.0))
        return invert(denoise, latents, denoiser.schedule, times)

    return Inversion(latents, (picture.height, picture.width), strength, invert_along, variation)


@torch.no_grad()
def invert(
    denoise: Denoise, z_0: Latents, schedule: Schedule, times: Times, iterations: int = 3
) -> Latents:
    """Compute z_t at the first of the times, from which `ddim` along the times returns z_0.

    A step of ddim from z_t to z_s is solved for z_t. The estimate that it needs would have to be
    made at z_t itself; the first iteration makes it at z_s, each further one at the z_t found so
    far (Pan et al. 2023, arXiv:2309.04907). One iteration is the usual inversion.
    """
    alpha, sigma = schedule.exact(times)
    z_s, alpha_s, sigma_s = z_0, alpha.new_ones(()), sigma.new_zeros(())  # the end of a step
    for i in reversed(range(len(times))):
        z_t = z_s
        for _ in range(iterations):
            estimate = denoise(z_t, times[i].expand(len(z_s)))
            if alpha[i] > sigma[i] or sigma_s == 0:
                noise = (z_t - alpha[i] * estimate) / sigma[i]
                z_t = alpha[i] / alpha_s * (z_s - sigma_s * noise) + sigma[i] * noise
            else:  # the same, in a form that converges where there is more noise than image
                z_t = sigma[i] / sigma_s * (z_s - alpha_s * estimate) + alpha[i] * estimate
        z_s, alpha_s, sigma_s = z_t, alpha[i], sigma[i]
    return z_s


class Inversion(ImageToImage):
    """Image to image with the noise that belongs to the picture, or noise near it."""

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
            invert: returns the picture's latents at the first of the given times.
            variation: how far each image's noise moves from there to noise of its own; 1 is image
                to image.
        """
        super().__init__(latents, size, strength)
        check_share("variation", variation)
        self.invert, self.variation = invert, variation
        self.inverted: dict[tuple[float, ...], Latents] = {}  # by times; kept for further batches

    def initial_latents(self, noise: Latents, schedule: Schedule, times: Times) -> Latents:
        if len(times) == 0:
            return super().initial_latents(noise, schedule, times)
        key = tuple(float(t) for t in times)
        if key not in self.inverted:
            self.inverted = {key: check_finite(self.invert(times))}
        z_t = self.inverted[key].expand_as(noise)
        if self.variation == 0:
            return z_t
        alpha, sigma = (x[0] for x in schedule.exact(times[:1]))
        mixed = slerp((z_t - alpha * self.latents) / sigma, noise, self.variation)
        return alpha * self.latents + sigma * mixed


def check_finite(latents: Latents) -> Latents:
    """Return latents, or refuse infinity and NaN in them."""
    if not latents.isfinite().all():
        raise NotFiniteError("inverting the picture gave values that are not finite.")
    return latents
