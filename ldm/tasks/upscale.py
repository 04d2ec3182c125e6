"""Super-resolution: with a model trained for it, or in two passes with any model.

In two passes the picture is enlarged by a filter, and image to image adds the detail; what it
changed at the size of the small picture is taken back at the end. Windows
(`ldm.tasks.multidiffusion`) bound the memory.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from foundation.errors import UserError
from foundation.shapes import Estimates, Latents, Timesteps
from ldm.denoiser import BoundNetwork
from ldm.pipeline.compatibility import SMALL_CHANNELS, extra_channels, unet_kind
from ldm.pipeline.image_processor import check_image_size, check_pixel_count, image_to_tensor
from ldm.pipeline.scheduler_config import LowResSchedule
from ldm.samplers.noise import SeededNoise
from ldm.tasks.base import Task, TaskPipeline
from ldm.tasks.img2img import ImageToImage

DEFAULT_NOISE_LEVEL = 20  # on the small picture
ITERATIONS = 3  # of back-projection; what is left is below a gray level, but for clipped colors


def upscale(
    pipeline: TaskPipeline,
    picture: Image.Image,
    scale: int | None = None,
    strength: float | None = None,
    *,
    noise_level: int | None = None,
) -> Task:
    """Make the task of enlarging a picture.

    Give the pipeline a `window`, so that the network sees pieces of a size it was trained on and
    memory is bounded.

    Args:
        scale: factor by which both sides grow; a model for upscaling has a fixed one.
        strength: in two passes, how much is drawn anew; 0.3 if left out.
        noise_level: for a model for upscaling, the noise on the small picture, from 0 to the
            highest level in its training (x4 upscaler: 350); 20 if left out.

    Raises:
        UserError: parameters of the other way, or a picture that the model cannot take.
    """
    if unet_kind(pipeline.unet.config) == "upscale":
        if strength is not None:
            raise UserError(
                "this model begins with noise alone: give a noise_level in place of strength."
            )
        return native_upscaling(pipeline, picture, scale, noise_level)
    if noise_level is not None:
        raise UserError("noise_level is for models trained for upscaling; give a strength.")
    scale = 4 if scale is None else scale
    if scale < 2:
        raise UserError(f"the scale is {scale}; a picture is enlarged 2 times or more.")
    check_pixel_count(scale * picture.width, scale * picture.height)
    enlarged = picture.resize(
        (picture.width * scale, picture.height * scale), Image.Resampling.LANCZOS
    )
    check_image_size(enlarged, pipeline.factor, pipeline.factor)
    strength = 0.3 if strength is None else strength
    return TwoPassUpscaling(pipeline.encode(enlarged), picture, scale, strength)


def native_upscaling(
    pipeline: TaskPipeline, picture: Image.Image, scale: int | None, noise_level: int | None
) -> Task:
    """Make the task for a model that was trained for upscaling."""
    factor = pipeline.latent_factor // cell_side(extra_channels(pipeline.unet.config))
    if scale not in (None, factor):
        raise UserError(f"this model enlarges {factor} times, not {scale} times.")
    check_image_size(picture, pipeline.factor // factor, 1)
    if pipeline.image_channels == 1:
        picture = picture.convert("RGB")
    small = image_to_tensor(picture, SMALL_CHANNELS).to(pipeline.device)
    size = (picture.height * factor, picture.width * factor)
    noise_level = DEFAULT_NOISE_LEVEL if noise_level is None else noise_level
    levels = pipeline.unet.config.num_class_embeds
    if levels is not None and noise_level >= levels:
        raise UserError(
            f"the noise level is {noise_level}; this U-Net knows levels below {levels}."
        )
    return NativeUpscaling(
        small, size, noise_level, pipeline.low_res, pipeline.latent_factor // factor
    )


def cell_side(channels: int) -> int:
    """Return how many pixels of a small picture, in each direction, belong to a latent pixel.

    channels: those that the network takes besides the latents.
    """
    side = math.isqrt(channels // SMALL_CHANNELS)
    if SMALL_CHANNELS * side**2 != channels:
        raise UserError(f"{channels} channels of a small picture are no squares of RGB pixels.")
    return side


def pixels_to_channels(
    small: Float[Tensor, "b c height width"], cell: int
) -> Float[Tensor, "b c_extra h w"]:
    """Turn each square of cell x cell pixels into the channels of one latent pixel."""
    return F.pixel_unshuffle(small, cell)


class NativeUpscaling(Task):
    """Upscaling with a model that takes the small picture, with some noise, as an input.

    The x4 upscaler of Stable Diffusion 2. The model is also given the level of the noise; more of
    it lets the model invent more.
    """

    gives_noise_level = True

    def __init__(
        self,
        small: Float[Tensor, "1 c h w"],
        size: tuple[int, int],
        noise_level: int,
        low_res: LowResSchedule,
        cell: int = 1,
    ):
        """
        Args:
            small: the small picture in [-1, 1], as large as the latents or a whole number of times
                larger.
            size: height and width of the large picture.
            noise_level: timestep of the schedule in low_res.
            cell: side of the square of pixels of the small picture that belongs to a latent pixel.
        """
        if not 0 <= noise_level <= low_res.max_noise_level:
            raise UserError(
                f"the noise level is {noise_level}; for this model it must be from 0 to "
                f"{low_res.max_noise_level}."
            )
        self.small, self.size, self.noise_level = small, size, noise_level
        self.cell = cell
        self.extra_channels = small.shape[1] * cell**2
        level = torch.tensor([noise_level])
        self.alpha, self.sigma = (x[0] for x in low_res.schedule.exact(level))

    def add_inputs(self, network: BoundNetwork, noise: SeededNoise) -> BoundNetwork:
        shape = tuple(self.small.shape[1:])
        unit_noise = noise.with_shape(shape).stream(0).initial()
        noisy = pixels_to_channels(self.alpha * self.small + self.sigma * unit_noise, self.cell)

        def network_with_small_picture(z_t: Latents, t: Timesteps) -> Estimates:
            inputs = noisy.to(z_t).repeat(len(z_t) // len(noisy), 1, 1, 1)
            levels = torch.full((len(z_t),), self.noise_level, device=z_t.device)
            return network(torch.cat([z_t, inputs], dim=1), t, levels)

        return network_with_small_picture


class TwoPassUpscaling(ImageToImage):
    """Upscaling with any model: image to image from the picture enlarged by a filter."""

    def __init__(
        self, latents: Float[Tensor, "1 c h w"], small: Image.Image, scale: int, strength: float
    ):
        """latents: those of the enlarged picture."""
        super().__init__(latents, (small.height * scale, small.width * scale), strength)
        self.small = small

    def postprocess(self, picture: Image.Image) -> Image.Image:
        return back_project(picture, self.small)


def back_project(picture: Image.Image, small: Image.Image) -> Image.Image:
    """Change a picture so that, made small, it is the small one: iterative back-projection.

    Irani & Peleg 1991 (10.1016/1049-9652(91)90045-L). Details, which a small picture does not have,
    stay.
    """
    bands: list[Image.Image] = []
    small_bands = small.convert(picture.mode).split()
    for band, small_band in zip(picture.split(), small_bands, strict=True):
        large, wanted = band.convert("F"), np.asarray(small_band, np.float32)
        for _ in range(ITERATIONS):
            missing = wanted - np.asarray(large.resize(small.size, Image.Resampling.BOX))
            added = Image.fromarray(missing).resize(large.size, Image.Resampling.BICUBIC)
            large = Image.fromarray((np.asarray(large) + np.asarray(added)).clip(0, 255))
        bands.append(Image.fromarray(np.asarray(large).round().astype(np.uint8)))
    return Image.merge(picture.mode, bands)
