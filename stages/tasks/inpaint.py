"""Inpainting: the U-Net gets a mask and the latents of the picture with gray under it."""

from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor

from autoencoder import Autoencoder
from dataset.images.transform import normalize_pixels, to_uint8
from foundation.hashing import generator
from ldm import TextToImage
from ldm.pipeline.image_processor import tensor_to_image
from ldm.tasks import inpaint
from ldm.tasks.base import Task
from ldm.tasks.inpaint import mask_of_latents
from stages.flags.tasks import TaskName
from stages.tasks.base import Generators, Indices, TrainingTask, most_likely_latents
from stages.tasks.masks import WHOLE, draw_mask


class InpaintingTask(TrainingTask):
    """Nine channels as in Stable Diffusion Inpainting: latents, mask, latents of what is kept.

    Masked pictures are encoded in each step, so that no mask is seen twice.
    """

    name: TaskName = "inpaint"
    tensors_read = 2
    drawing_flags = "--init-image PICTURE --mask MASK "

    def __init__(self, autoencoder: Autoencoder, whole: float | None = None):
        """whole: share of masks that cover the whole image; None: as published."""
        self.autoencoder = autoencoder
        self.whole = WHOLE if whole is None else whole
        self.channels = 1 + autoencoder.config.latent_channels

    def describe(self) -> dict[str, Any]:
        return {"inpainting": {"whole_masks": self.whole, "masks": 1}}  # their version

    def read(self, indices: Indices, random: Generators) -> tuple[Tensor, ...]:
        pixels = self.pixels_of(indices)
        height, width = pixels.shape[-2:]
        cell = self.autoencoder.factor
        masks = [draw_mask(width, height, each, whole=self.whole, cell=cell) for each in random]
        return pixels, torch.stack(masks)

    def inputs(self, *made: Tensor) -> tuple[Tensor, ...]:
        pixels, masks = made
        kept = most_likely_latents(self.autoencoder, normalize_pixels(pixels) * (1 - masks))
        return (torch.cat([mask_of_latents(masks.float(), kept), kept], dim=1),)

    def preview(
        self, pipeline: TextToImage, pixels: UInt8[Tensor, "1 c h w"], number: int
    ) -> tuple[Task, UInt8[Tensor, "1 c h w"]]:
        mask, images = self.preview_mask(pixels, number)[0], normalize_pixels(pixels)
        task = inpaint(pipeline, tensor_to_image(images[0]), tensor_to_image(2.0 * mask - 1))
        return task, to_uint8(images * (1 - mask))

    def preview_mask(
        self, pixels: UInt8[Tensor, "1 c h w"], number: int
    ) -> UInt8[Tensor, "1 1 h w"]:
        """Return the mask of a preview, which keeps something: 1 where the picture is drawn."""
        height, width = pixels.shape[-2:]
        random = generator(number, "preview mask")
        return draw_mask(width, height, random, whole=0, cell=self.autoencoder.factor)[None]
