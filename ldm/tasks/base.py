"""The base of all tasks: where a task changes what happens between noise and picture.

Latents are those of a whole batch, of which every image is treated alike, so that no image depends
on the others.
"""

import math
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Real
from PIL import Image
from torch import Tensor

from foundation.errors import UserError
from foundation.shapes import Latents
from ldm.denoiser import BoundNetwork, Conditioning, Denoiser
from ldm.pipeline.compatibility import (
    UNET_KINDS,
    extra_channels,
    takes_noise_level,
    unet_kind,
)
from ldm.pipeline.scheduler_config import LowResSchedule
from ldm.samplers import Sampler, find_sampler
from ldm.samplers.noise import SeededNoise
from ldm.schedule import Schedule
from ldm.timesteps import Times
from ldm.unet import UNet


class Task:
    """Base task: plain text to image. Other tasks override what they change."""

    strength: float = 1.0  # share of the steps that are taken, rounded up
    size: tuple[int, int] | None = None  # height and width in pixels, where the task fixes them
    extra_channels: int = 0  # concatenated to the latents
    gives_noise_level: bool = False  # of a small picture in these channels

    def add_inputs(self, network: BoundNetwork, noise: SeededNoise) -> BoundNetwork:
        """Return the network with what it is to see besides the latents."""
        return network

    def constrain(self, z_0: Latents) -> Latents:
        """Change an estimate of the clean latents."""
        return z_0

    def initial_latents(self, noise: Latents, schedule: Schedule, times: Times) -> Latents:
        """Return the latents at the first of the times; the result, if there are no times."""
        return noise

    def find_sampler(self, name: str, noise: SeededNoise) -> Sampler:
        """Return the sampler of a name, or a variant that the task needs.

        Raises:
            UserError: there is none of this name, or it does not go with the task.
        """
        return find_sampler(name)

    def repeats_per_step(self) -> int:
        """Return how often each step is taken."""
        return 1

    def postprocess(self, picture: Image.Image) -> Image.Image:
        """Change the decoded picture."""
        return picture


TEXT_TO_IMAGE = Task()


@runtime_checkable
class TaskPipeline(Protocol):
    """What tasks need of a pipeline; `ldm.TextToImage` is one."""

    unet: UNet
    low_res: LowResSchedule

    @property
    def device(self) -> torch.device: ...

    @property
    def factor(self) -> int:
        """What the sides of a picture must be a multiple of."""
        ...

    @property
    def latent_factor(self) -> int:
        """How many times the autoencoder shrinks both sides."""
        ...

    @property
    def image_channels(self) -> int: ...

    def encode(
        self, images: Float[Tensor, "1 c h w"] | Image.Image
    ) -> Float[Tensor, "1 c_latent h_latent w_latent"]: ...

    def unscaled(self, latents: Latents) -> Latents:
        """Return latents as the encoder network gives them."""
        ...

    def make_denoiser(self, window: int | None = None) -> Denoiser: ...

    def condition_on(self, prompt: str) -> Sequence[tuple[Conditioning, float]]: ...


def last_times(times: Times, strength: float) -> Real[Tensor, " last"]:
    """Return this share of the times, rounded up to whole steps: those with the least noise."""
    return times[len(times) - count_steps(len(times), strength) :]


def count_steps(steps: int, strength: float) -> int:
    """Return how many of the steps are taken at this strength."""
    return math.ceil(strength * steps - 1e-9)  # 0.07 * 100 is a little above 7


def check_share(name: str, value: float) -> None:
    """Refuse a parameter outside 0 to 1, NaN included."""
    if not 0 <= value <= 1:
        raise UserError(f"{name} is {value:g}; it must be from 0 to 1.")


def check_task(unet: UNet, task: Task) -> None:
    """Refuse a U-Net that needs more inputs than the task gives it, or other ones."""
    needed = extra_channels(unet.config)
    wants_level = takes_noise_level(unet.config)
    if needed != task.extra_channels:
        level = " and a noise level" if wants_level else ""
        raise UserError(
            f"this U-Net takes {needed} channels besides those of the latents{level} "
            f"({UNET_KINDS[unet_kind(unet.config)]}), and this task gives "
            f"{task.extra_channels}. The network itself can be called as pipeline.unet."
        )
    if wants_level != task.gives_noise_level:
        takes = "takes a" if wants_level else "takes no"
        raise UserError(
            f"this U-Net {takes} noise level besides the text. Only models for upscaling take one; "
            "they take channels of a small picture besides the latents."
        )
