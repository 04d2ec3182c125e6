"""The flags of evaluations that say which images and captions they measure with."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from dataset.options import ReadOptions
from training.flags import FractionBelowOne, Seed

NOISE = (0.05, 0.1, 0.2, 0.4, 0.8)  # usual strengths on latents, in their standard deviations


@dataclass(frozen=True, kw_only=True)
class MeasuredImages(ReadOptions):
    """Flags of every evaluation: which images it measures with."""

    IMAGE_FLAGS: ClassVar[tuple[str, ...]] = (
        *("data", *ReadOptions.READ_FLAGS),
        "held_out",
    )

    data: Path  # data folder
    held_out: FractionBelowOne = 0.02  # fraction that the trainings held out; 0: measure with all
    seed: Seed = 0  # of the choice of images, and of all noise


@dataclass(frozen=True, kw_only=True)
class MeasuredCaptions(MeasuredImages):
    """Flags of the evaluation of a whole model: which captions it draws."""

    IMAGE_FLAGS: ClassVar[tuple[str, ...]] = (*MeasuredImages.IMAGE_FLAGS, "held_out_split")

    # split that the trainings, which read --split, did not see; left out: as held_out says
    held_out_split: str | None = None

    @property
    def is_one_split(self) -> bool:
        """Whether a split was named without saying which images the trainings did not see."""
        return self.split is not None and self.held_out_split is None
