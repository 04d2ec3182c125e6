"""Restoring: a damaged picture is drawn anew without noise, blur and what compression left.

The network gets the latents of the damaged picture after the noisy ones, as InstructPix2Pix does
(Brooks et al. 2023, arXiv:2211.09800). Only models trained for it can restore.
"""

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from foundation.errors import UserError
from foundation.shapes import Estimates, Latents, Timesteps
from ldm.denoiser import BoundNetwork
from ldm.pipeline.compatibility import UNET_KINDS, unet_kind
from ldm.pipeline.image_processor import check_image_size
from ldm.samplers.noise import SeededNoise
from ldm.tasks.base import Task, TaskPipeline


def restore(pipeline: TaskPipeline, picture: Image.Image) -> Task:
    """Make the task of restoring a damaged picture.

    Raises:
        UserError: the model was not trained for it, or cannot take the picture.
    """
    kind = unet_kind(pipeline.unet.config)
    if kind != "restore":
        raise UserError(
            f"this model was not trained to restore pictures: its U-Net {UNET_KINDS[kind]}. Train "
            "one with the task restore."
        )
    check_image_size(picture, pipeline.factor, pipeline.factor)
    damaged = pipeline.unscaled(pipeline.encode(picture))
    return Restoring(damaged, (picture.height, picture.width))


class Restoring(Task):
    """Sampling with a model that gets the latents of a damaged picture as an input."""

    def __init__(self, damaged: Float[Tensor, "1 c h w"], size: tuple[int, int]):
        """
        Args:
            damaged: latents of the damaged picture, as the encoder network gives them.
            size: height and width of the picture in pixels.
        """
        self.damaged, self.size = damaged, size
        self.extra_channels = damaged.shape[1]

    def add_inputs(self, network: BoundNetwork, noise: SeededNoise) -> BoundNetwork:
        def network_with_picture(z_t: Latents, t: Timesteps) -> Estimates:
            inputs = self.damaged.to(z_t).expand(len(z_t), -1, -1, -1)
            return network(torch.cat([z_t, inputs], dim=1), t)

        return network_with_picture
