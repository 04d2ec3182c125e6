"""Small pictures to large ones: by a model made for it, or in two passes by any model.

In two passes the picture is enlarged by a filter, and image to image adds the detail; what it
changed at the size of the small picture is taken back at the end. Windows
(`ldm.tasks.multidiffusion`) bound the memory.
"""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from foundation.errors import UserError
from foundation.shapes import Estimates, Latents, Network, Timesteps
from ldm.pipeline.scheduler_config import LowResSchedule
from ldm.samplers.noise import SeededNoise
from ldm.tasks.base import Task
from ldm.tasks.img2img import ImageToImage

PROJECTIONS = 3  # after which what is left lies below a gray level, but for clipped colors


class NativeUpscaling(Task):
    """By a model that sees the small picture, with some noise, beside the latents.

    The x4 upscaler of Stable Diffusion 2. Noise on the small picture, of which the model is told
    the level, gives it leave to invent.
    """

    beside = 3

    def __init__(
        self,
        small: Float[Tensor, "1 c h w"],
        size: tuple[int, int],
        level: int,
        low_res: LowResSchedule,
    ):
        """
        Args:
            small: in [-1, 1]; has as many pixels as the latents.
            size: of the large picture.
            level: of the noise on the small one: a time of the schedule in low_res.
        """
        if not 0 <= level <= low_res.max_noise_level:
            raise UserError(
                f"the noise level is {level}; for this model it must be from 0 to "
                f"{low_res.max_noise_level}."
            )
        self.small, self.size, self.level = small, size, level
        self.alpha, self.sigma = (x[0] for x in low_res.schedule.exact(torch.tensor([level])))

    def network(self, network: Network, noise: SeededNoise) -> Network:
        shape = tuple(self.small.shape[1:])
        fresh = noise.shaped(shape).stream(0).initial()
        beside = self.alpha * self.small + self.sigma * fresh

        def told(z_t: Latents, t: Timesteps, *more: Any) -> Estimates:
            channels = beside.to(z_t).repeat(len(z_t) // len(beside), 1, 1, 1)
            levels = torch.full((len(z_t),), self.level, device=z_t.device)
            return network(torch.cat([z_t, channels], dim=1), t, *more, levels)

        return told


class TwoPass(ImageToImage):
    """By any model: image to image from the enlarged picture."""

    def __init__(
        self, latents: Float[Tensor, "1 c h w"], small: Image.Image, scale: int, strength: float
    ):
        """latents: of the enlarged picture."""
        super().__init__(latents, (small.height * scale, small.width * scale), strength)
        self.small = small

    def finish(self, picture: Image.Image) -> Image.Image:
        return consistent(picture, self.small)


def enlarged(small: Image.Image, scale: int) -> Image.Image:
    size = (small.width * scale, small.height * scale)
    return small.resize(size, Image.Resampling.LANCZOS)


def consistent(picture: Image.Image, small: Image.Image) -> Image.Image:
    """The picture, changed so that made small it is the small one: iterative back-projection.

    Irani & Peleg 1991 (10.1016/1049-9652(91)90045-L). Details, which a small picture does not have,
    stay.
    """
    bands = []
    for band, wanted in zip(picture.split(), small.convert(picture.mode).split(), strict=True):
        large, wanted = band.convert("F"), np.asarray(wanted, np.float32)
        for _ in range(PROJECTIONS):
            missing = wanted - np.asarray(large.resize(small.size, Image.Resampling.BOX))
            missing = Image.fromarray(missing).resize(large.size, Image.Resampling.BICUBIC)
            large = Image.fromarray((np.asarray(large) + np.asarray(missing)).clip(0, 255))
        bands.append(Image.fromarray(np.asarray(large).round().astype(np.uint8)))
    return Image.merge(picture.mode, bands)
