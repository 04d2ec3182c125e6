"""The flags and presets of train_clip.py."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from foundation.errors import UserError
from stages.flags.data import CaptionTrainingConfig
from training.config import extended
from training.flags import Bound, Fraction, Groups, NonNegative, Positive

Several = Annotated[int, Bound(lambda x: x > 1, "2 or more, to compare pairs", on_help_page=False)]
Side = Annotated[int, Bound(lambda x: 32 <= x <= 4096 and x % 2 == 0, "even, 32 to 4096")]


@dataclass(frozen=True, kw_only=True)
class ClipTrainingConfig(CaptionTrainingConfig):
    """Flags of train_clip.py."""

    GROUPS: ClassVar[Groups] = extended(
        CaptionTrainingConfig.GROUPS,
        {
            "data": ("shift",),
            "model": ("size", "context_length"),
            "training": ("weight_decay",),
        },
    )

    steps: Positive[int] = 4_000  # optimizer steps
    batch_size: Several = 256  # pairs of image and text per step, each compared with all others
    warmup: NonNegative[int] = 50  # steps in which the learning rate rises from 0
    cooldown: Fraction = 1.0  # fraction of the run, at its end, in which the rate falls to 0
    weight_decay: NonNegative[float] = 0.1  # of AdamW, on matrices only
    # side in pixels to which images are shrunk before they are seen; the preset's if left out
    size: Side | None = None
    context_length: Positive[int] | None = None  # tokens per text; the preset's if left out
    # move each image by up to so many pixels, for a CLIP that scores samples
    shift: Annotated[int, Bound(lambda x: 0 <= x < 32, "from 0 to 31")] = 0
    evaluate_every: Positive[int] = 1000  # steps between retrieval tests; there is one at the end

    def check(self) -> None:
        if self.accumulate > 1:
            raise UserError(
                f"--accumulate {self.accumulate} is not possible here: every pair is compared with "
                "all others of its batch, and the image encoder normalizes over the batch, so "
                "smaller parts would teach something else. Leave the flag out; if the memory does "
                "not suffice, use a smaller --batch-size."
            )
        super().check()

    @property
    def divides_batches(self) -> bool:
        return False


BASE = {"steps": 20_000, "batch_size": 512, "learning_rate": 5e-4, "warmup": 1000}
# Each preset is an architecture of the same name (conditioning/clip.py) and defaults for it.
# Numbers in comments: recall@1 and @5 over the training pairs; more in docs/measurements.md.
PRESETS = {
    "tiny-32": {"steps": 200, "batch_size": 32, "save_every": 100},
    "fashion-32": {"steps": 150, "batch_size": 128, "learning_rate": 2e-3},  # ten captions
    "demo": {"steps": 300, "learning_rate": 2e-3},  # OpenMoji: 0.89, 0.99
    "small-64": {"steps": 600, "learning_rate": 1.5e-3},
    "small-128": {"steps": 1500, "learning_rate": 1.5e-3},
    "base-128": BASE,
    "base-256": BASE,
    "base-512": BASE,
    "judge": {"steps": 200, "learning_rate": 1.5e-3, "seed": 1, "shift": 2},
}
