"""The base of the tasks that a U-Net of stage 2 can learn: what it gets besides noisy latents.

Everything random about it comes from one generator per image, so that it does not depend on the
batch, and a resumed run makes the same.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from autoencoder import Autoencoder
from dataset.images.transform import PixelTensor
from dataset.loader import PixelStore
from foundation.shapes import Images, Latents
from ldm import TextToImage
from ldm.denoiser import Conditioning
from ldm.pipeline.scheduler_config import LowResSchedule
from ldm.tasks.base import TEXT_TO_IMAGE, Task
from ldm.unet import UNetConfig
from stages.flags.tasks import TaskName

Indices = Int[Tensor, " b"]
Generators = Sequence[torch.Generator]


class TrainingTask:
    """The task of drawing from noise alone, which needs no inputs. Others override.

    A step first calls `read`, then `inputs` on the device, then `join` for each part of the batch.

    Attributes:
        channels: that the U-Net gets besides those of the latents.
        tensors_read: how many tensors `read` returns.
        low_res: noise on small pictures, if there are any.
        drawing_flags: what a command of sample.py that draws with the model needs besides.
        pixels: of the images by their number; set before the first step.
    """

    name: TaskName = "draw"
    channels: int = 0
    tensors_read: int = 0
    low_res: LowResSchedule | None = None
    drawing_flags: str = ""
    pixels: PixelStore | None = None

    def architecture(self, unet: UNetConfig) -> UNetConfig:
        """Return the architecture of a U-Net for this task: another one with more inputs."""
        return replace(unet, in_channels=unet.out_channels + self.channels)

    def describe(self) -> dict[str, Any]:
        """Return as JSON how inputs are made; a run resumes only with the same."""
        return {}

    def read(self, indices: Indices, random: Generators) -> tuple[Tensor, ...]:
        """Make what the inputs are computed from, on the CPU.

        Args:
            indices: numbers of images of one shape.
            random: a generator for each.
        """
        return ()

    def inputs(self, *made: Tensor) -> tuple[Tensor, ...]:
        """Compute the inputs on the device. made: as from `read`, perhaps some of the rows."""
        return made

    def join(self, conditioning: Conditioning, *inputs: Tensor) -> Conditioning:
        """Return a conditioning with the inputs. inputs: as from `inputs`."""
        return replace(conditioning, channels=inputs[0]) if inputs else conditioning

    def example(self, latents: Latents) -> tuple[Tensor, ...]:
        """Return empty inputs for these latents."""
        count, _, *sides = latents.shape
        return (latents.new_zeros(count, self.channels, *sides),) if self.channels else ()

    def preview(
        self, pipeline: TextToImage, pixels: UInt8[Tensor, "1 c h w"], number: int
    ) -> tuple[Task, UInt8[Tensor, "1 c h w"]]:
        """Return the task of drawing an image of a preview again, and the picture it begins with.

        number: of the preview's picture, on which what is random depends.
        """
        return TEXT_TO_IMAGE, pixels

    def pixels_of(self, indices: Indices) -> PixelTensor:
        """Return the pixels of images."""
        assert self.pixels is not None, "the pixels are set before the first step"
        return self.pixels(indices)

    @torch.no_grad()
    def inputs_at_once(self, made: Sequence[Tensor], at_once: int) -> tuple[Tensor, ...]:
        """Compute the inputs of many images, some at a time."""
        parts = zip(*(tensor.split(at_once) for tensor in made), strict=True)
        inputs = zip(*(self.inputs(*part) for part in parts), strict=True)
        return tuple(torch.cat(rows) for rows in inputs)


DRAWING = TrainingTask()


def most_likely_latents(autoencoder: Autoencoder, images: Images) -> Float[Tensor, "b c h w"]:
    """Return the most likely latents of images, in fp32."""
    return autoencoder.encode(images, check=False).mode().float()
