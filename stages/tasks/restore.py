"""Restoring: the U-Net gets the latents of a damaged picture, as InstructPix2Pix does."""

from dataclasses import asdict
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor

from autoencoder import Autoencoder
from dataset.images.transform import normalize_pixels
from foundation.hashing import generator
from ldm import TextToImage
from ldm.pipeline.image_processor import tensor_to_image
from ldm.tasks import restore
from ldm.tasks.base import Task
from stages.flags.tasks import TaskName
from stages.tasks.base import Generators, Indices, TrainingTask, most_likely_latents
from stages.tasks.degradation import Degradation


class RestoringTask(TrainingTask):
    """Pictures are damaged and encoded in each step, so that no damage is seen twice."""

    name: TaskName = "restore"
    tensors_read = 1
    drawing_flags = "--restore PICTURE "

    def __init__(self, autoencoder: Autoencoder, degradation: Degradation):
        self.autoencoder, self.degradation = autoencoder, degradation
        self.channels = autoencoder.config.latent_channels

    def describe(self) -> dict[str, Any]:
        return {"degradation": asdict(self.degradation)}

    def read(self, indices: Indices, random: Generators) -> tuple[Tensor, ...]:
        pairs = zip(self.pixels_of(indices), random, strict=True)
        return (torch.stack([self.degradation.damage(pixels, each) for pixels, each in pairs]),)

    def inputs(self, *made: Tensor) -> tuple[Tensor, ...]:
        (damaged,) = made
        latents = most_likely_latents(self.autoencoder, normalize_pixels(damaged))
        return (self.autoencoder.unscaled(latents),)

    def preview(
        self, pipeline: TextToImage, pixels: UInt8[Tensor, "1 c h w"], number: int
    ) -> tuple[Task, UInt8[Tensor, "1 c h w"]]:
        damaged = self.degradation.damage(pixels[0], generator(number, "preview damage"))
        return restore(pipeline, tensor_to_image(normalize_pixels(damaged))), damaged[None]
