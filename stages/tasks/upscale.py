"""Super-resolution: the U-Net gets a small picture with noise of a level that it is told."""

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import UInt8
from torch import Tensor

from autoencoder import Autoencoder
from dataset.images.transform import PixelTensor, normalize_pixels, to_uint8
from foundation.errors import UserError
from foundation.shapes import Images, Latents
from ldm import TextToImage
from ldm.denoiser import Conditioning
from ldm.pipeline.compatibility import SMALL_CHANNELS
from ldm.pipeline.image_processor import tensor_to_image
from ldm.pipeline.scheduler_config import LowResSchedule
from ldm.tasks import upscale
from ldm.tasks.base import Task
from ldm.tasks.upscale import DEFAULT_NOISE_LEVEL, pixels_to_channels
from ldm.unet import UNetConfig
from stages.flags.tasks import TaskName
from stages.tasks.base import Generators, Indices, TrainingTask

SmallPictures = UInt8[Tensor, "b c h_small w_small"]


class UpscalingTask(TrainingTask):
    """The inputs of Stable Diffusion's x4 upscaler: a small RGB picture, and its noise level.

    Where a latent pixel has several pixels of the small picture, these are channels of it.
    """

    name: TaskName = "upscale"
    tensors_read = 2
    drawing_flags = "--init-image PICTURE --upscale FACTOR "

    def __init__(
        self, autoencoder: Autoencoder, scale: int | None = None, max_noise_level: int | None = None
    ):
        """
        Args:
            scale: how many times smaller the small pictures are; None: as the latents.
            max_noise_level: the noisiest timestep of small pictures; None: as published.

        Raises:
            UserError: the autoencoder does not go with the scale.
        """
        factor = autoencoder.factor
        self.scale = factor if scale is None else scale
        if self.scale < 2 or factor % self.scale:
            choices = [str(k) for k in range(2, factor + 1) if factor % k == 0]
            raise UserError(
                f"the networks cannot enlarge {self.scale} times: the autoencoder shrinks pictures "
                f"{factor} times, which must be a multiple of it. upscale_factor can be "
                f"{', '.join(choices) or 'nothing with this autoencoder'}."
            )
        self.cell = factor // self.scale
        self.channels = SMALL_CHANNELS * self.cell**2
        noise = LowResSchedule()
        if max_noise_level is not None:
            noise = replace(noise, max_noise_level=max_noise_level)
        self.low_res = self.small_noise = noise

    def architecture(self, unet: UNetConfig) -> UNetConfig:
        return replace(super().architecture(unet), class_embed_type="timestep")

    def describe(self) -> dict[str, Any]:
        level = self.small_noise.max_noise_level
        return {"upscaling": {"upscale_factor": self.scale, "max_noise_level": level}}

    def read(self, indices: Indices, random: Generators) -> tuple[Tensor, ...]:
        small = normalize_pixels(self.shrunk(self.pixels_of(indices)))
        small = small.expand(-1, SMALL_CHANNELS, -1, -1)
        highest = self.small_noise.max_noise_level
        levels = torch.cat([torch.randint(highest + 1, (1,), generator=each) for each in random])
        noise = torch.stack([torch.randn(small.shape[1:], generator=each) for each in random])
        alpha, sigma = (
            x.float().view(-1, 1, 1, 1) for x in self.small_noise.schedule.exact(levels)
        )
        return pixels_to_channels(alpha * small + sigma * noise, self.cell), levels

    def shrunk(self, pixels: PixelTensor) -> SmallPictures:
        """Return the small pictures."""
        return shrink(pixels, self.scale)

    def join(self, conditioning: Conditioning, *inputs: Tensor) -> Conditioning:
        channels, levels = inputs
        return replace(conditioning, channels=channels, noise_level=levels)

    def example(self, latents: Latents) -> tuple[Tensor, ...]:
        return *super().example(latents), latents.new_zeros(len(latents), dtype=torch.long)

    def preview(
        self, pipeline: TextToImage, pixels: UInt8[Tensor, "1 c h w"], number: int
    ) -> tuple[Task, UInt8[Tensor, "1 c h w"]]:
        small = self.shrunk(pixels)
        picture = tensor_to_image(normalize_pixels(small)[0])
        level = min(DEFAULT_NOISE_LEVEL, self.small_noise.max_noise_level)
        task = upscale(pipeline, picture, self.scale, noise_level=level)
        shown = small.repeat_interleave(self.scale, dim=2).repeat_interleave(self.scale, dim=3)
        return task, shown


def shrink(pixels: PixelTensor, scale: int) -> SmallPictures:
    """Return pictures of 8 bits made smaller by an antialiased bicubic filter."""
    images: Images = normalize_pixels(pixels)
    height, width = (side // scale for side in images.shape[-2:])
    return to_uint8(F.interpolate(images, (height, width), mode="bicubic", antialias=True))
