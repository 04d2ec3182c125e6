"""What is drawn besides a prompt: where a task steps in on the way from noise to a picture.

The base is text to image, which does nothing of its own. Latents are those of a whole batch, of
which every image is treated alike, so that none depends on the others.
"""

import math
from collections.abc import Callable

from jaxtyping import Real
from PIL import Image
from torch import Tensor

from foundation.errors import UserError
from foundation.shapes import Denoise, Latents, Network
from ldm.pipeline.compatibility import UNET_KINDS, extra_channels
from ldm.pipeline.conditioning import knows_classes
from ldm.samplers import find_sampler
from ldm.samplers.noise import SeededNoise
from ldm.schedule import Schedule
from ldm.timesteps import Times
from ldm.unet import UNet


class Task:
    """Text to image: from noise alone, told nothing, changed nowhere."""

    strength: float = 1.0  # share of the steps that are taken, rounded up
    size: tuple[int, int] | None = None  # height and width of the picture, where the task fixes it
    beside: int = 0  # channels that it puts beside those of the latents

    def network(self, network: Network, noise: SeededNoise) -> Network:
        """The network, told what it is to see besides the latents."""
        return network

    def bind(self, denoise: Denoise) -> Denoise:
        """What becomes of the estimate of the clean latents."""
        return denoise

    def start(self, noise: Latents, schedule: Schedule, times: Times) -> Latents:
        """Latents at the first of the times; the result if no times are left."""
        return noise

    def sampler(self, name: str, noise: SeededNoise) -> Callable[..., Latents]:
        return find_sampler(name)

    def rounds(self) -> int:
        """How often a step is taken."""
        return 1

    def finish(self, picture: Image.Image) -> Image.Image:
        """What becomes of the decoded picture."""
        return picture


TEXT_TO_IMAGE = Task()


def last(times: Times, strength: float) -> Real[Tensor, " taken"]:
    """This share of the times, rounded up to whole steps: those with the least noise."""
    return times[len(times) - steps_taken(len(times), strength) :]


def steps_taken(steps: int, strength: float) -> int:
    return math.ceil(strength * steps - 1e-9)  # 0.07 * 100 is a little above 7


def check_share(name: str, value: float) -> None:
    if not 0 <= value <= 1:  # refuses NaN, too
        raise UserError(f"{name} is {value:g}; it must be from 0 to 1.")


def check_task(unet: UNet, task: Task) -> None:
    """Refuses a U-Net that draws from more than the task gives it, or from less."""
    more = extra_channels(unet.config)
    levels = unet.class_embedding is not None and not knows_classes(unet)
    if more != task.beside:
        also = " and a noise level" * levels
        raise UserError(
            f"this U-Net wants {more} channels beside those of the latents{also} "
            f"({UNET_KINDS.get(more, 'of an unknown kind')}), and this task gives {task.beside}. "
            "The network itself can be called as pipeline.unet."
        )
    if levels != (task.beside == 3):
        raise UserError(
            f"this U-Net is {'' if levels else 'not '}told a noise level beside the text, as those "
            "are that upscale, whose latents have 3 channels of a small picture beside them."
        )
