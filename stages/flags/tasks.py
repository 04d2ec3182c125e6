"""The flags of train_ldm.py that say which task the U-Net learns."""

from dataclasses import dataclass
from typing import Annotated, Literal

from foundation.errors import UserError
from ldm.config import TRAIN_TIMESTEPS
from training.flags import Bound, Fraction, NonNegative

TaskName = Literal["draw", "inpaint", "upscale", "restore"]
LEVELS = f"from 0 to {TRAIN_TIMESTEPS - 1}"
NoiseLevel = Annotated[int, Bound(lambda x: 0 <= x < TRAIN_TIMESTEPS, LEVELS)]
UpscaleFactor = Annotated[int, Bound(lambda x: x > 1, "2 or more", on_help_page=False)]
Quality = Annotated[int, Bound(lambda x: 1 <= x <= 100, "from 1 to 100")]
Contrast = Annotated[float, Bound(lambda x: 0 < x <= 1, "above 0, and 1 at most")]
TASK_FLAGS: dict[TaskName, tuple[str, ...]] = {
    "inpaint": ("whole_masks",),
    "upscale": ("upscale_factor", "max_noise_level"),
    "restore": ("damage_blur", "damage_noise", "damage_jpeg", "damage_contrast"),
}


@dataclass(frozen=True, kw_only=True)
class TaskFlags:
    """Which task the U-Net learns, and how its inputs are made."""

    # draw: from noise; inpaint: under a mask; upscale: a small picture; restore: a damaged one
    task: TaskName = "draw"
    # inpaint: share of the masks that cover the whole image; left out: 0.25
    whole_masks: Fraction | None = None
    # upscale: how many times smaller the small pictures are; left out: as the autoencoder's latents
    upscale_factor: UpscaleFactor | None = None
    # upscale: the highest level of the noise on small pictures; left out: 350
    max_noise_level: NoiseLevel | None = None
    # restore: the largest standard deviation of the blur, in pixels; left out: 2
    damage_blur: NonNegative[float] | None = None
    # restore: the largest standard deviation of the noise; black to white is 1; left out: 0.15
    damage_noise: Fraction | None = None
    damage_jpeg: Quality | None = None  # restore: the lowest quality of JPEG; left out: 20
    # restore: the least share of the contrast that is left; left out: 0.5
    damage_contrast: Contrast | None = None

    def check_task(self, condition: str) -> None:
        """Refuse a condition that the task has no place for."""
        if self.task == "upscale" and condition == "class":
            raise UserError(
                "--task upscale does not go with --condition class: the U-Net gets the noise level "
                "of the small picture where it would get the class. Use --condition text or none."
            )
