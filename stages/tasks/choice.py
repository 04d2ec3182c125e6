"""The task that the flags of train_ldm.py choose."""

from pathlib import Path
from typing import Any

from autoencoder import Autoencoder
from autoencoder.io import read_provenance
from dataset.images.pixel_format import recorded_format
from foundation.errors import UserError
from stages.flags.tasks import TaskFlags
from stages.tasks.base import TrainingTask
from stages.tasks.degradation import Degradation
from stages.tasks.inpaint import InpaintingTask
from stages.tasks.restore import RestoringTask
from stages.tasks.upscale import UpscalingTask


def choose_task(flags: TaskFlags, autoencoder: Autoencoder, source: Path) -> TrainingTask:
    """Return the task.

    source: where the autoencoder lies, which says which pixels it was trained on.

    Raises:
        UserError: the autoencoder does not go with the task.
    """
    if flags.task == "draw":
        return TrainingTask()
    pixels = recorded_format(read_provenance(source))
    if not pixels.eight_bit:
        raise UserError(
            f"--task {flags.task} needs pictures of 8 bits, and this autoencoder was trained on "
            f"{pixels}. With such images: --task draw."
        )
    channels = autoencoder.config.in_channels
    if flags.task != "inpaint" and channels not in (1, 3):
        raise UserError(
            f"--task {flags.task} is for gray and RGB pictures, and this autoencoder takes "
            f"{channels} channels. With such images: --task draw, or inpaint."
        )
    return make_task(flags, autoencoder)


def make_task(flags: TaskFlags, autoencoder: Autoencoder) -> TrainingTask:
    """Return the task, whatever pixels the autoencoder was trained on."""
    if flags.task == "draw":
        return TrainingTask()
    if flags.task == "inpaint":
        return InpaintingTask(autoencoder, flags.whole_masks)
    if flags.task == "upscale":
        return UpscalingTask(autoencoder, flags.upscale_factor, flags.max_noise_level)
    damages = {
        "blur": flags.damage_blur,
        "noise": flags.damage_noise,
        "jpeg": flags.damage_jpeg,
        "contrast": flags.damage_contrast,
    }
    given: dict[str, Any] = {name: value for name, value in damages.items() if value is not None}
    return RestoringTask(autoencoder, Degradation(**given))
