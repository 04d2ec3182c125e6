"""The options of the check of a data folder."""

from dataclasses import dataclass
from pathlib import Path

from dataset.options import ReadOptions
from training.flags import Positive


@dataclass(frozen=True, kw_only=True)
class CheckOptions(ReadOptions):
    """What a folder is checked for."""

    preset: str | None = None  # also check the settings of the trainings with this preset
    text_encoder: Path | None = None  # folder of the text encoder, whose tokens are counted
    size: Positive[int] | None = None  # side of the training images, in pixels
    context_length: Positive[int] | None = None  # tokens that the text encoder takes
    text_chunks: Positive[int] = 1  # contexts per caption, as in train_ldm.py
    batch_size: Positive[int] | None = None  # images per step; left out: the preset's, or 32
    value_range: tuple[float, float] | None = None  # as in train_vae.py
    allow_missing_captions: bool = False  # accept images without a caption
    near_duplicates: bool = True  # look for pictures that look the same; decodes all of them
