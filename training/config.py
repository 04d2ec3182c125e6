"""The flags that all trainings share, and what follows from them alone.

Nothing here imports torch: command lines are read before it is loaded, which takes seconds.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import tyro

from foundation.errors import UserError
from foundation.ranks import world_size
from training.config_json import RENAMED
from training.flags import (
    Fraction,
    FractionBelowOne,
    Groups,
    Needs,
    NonNegative,
    Positive,
    needs,
)
from training.watchdog import RANK_TIMEOUT

PrecisionName = Literal["auto", "bf16", "fp16", "fp32"]
Override = Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME=VALUE ...")]


def extended(groups: Groups, more: Groups) -> Groups:
    """Return sections of the help page with more fields; new sections come before the output."""
    titles = [*groups, *(title for title in more if title not in groups)]
    titles.sort(key=lambda title: title in ("output", "machine"))
    return {title: (*groups.get(title, ()), *more.get(title, ())) for title in titles}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How long to train, and how many optimizer steps lie between saves, evaluations and logs."""

    steps: int
    images_per_step: int
    save_every: int
    evaluate_every: int  # previews and validation
    log_every: int = 20
    rank_timeout: float = RANK_TIMEOUT  # seconds without progress until a rank counts as hanging

    def __post_init__(self):
        for name in ("steps", "images_per_step", "save_every", "evaluate_every", "log_every"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, got {getattr(self, name)}.")


def learning_rate(step: int, *, base: float, steps: int, warmup: int, cooldown: float) -> float:
    """Compute the learning rate of a step: linear warm-up, constant, then a half-cosine to zero.

    This is the "warmup-stable-decay" schedule. It is a pure function of the step, so there is no
    scheduler state to save.

    Args:
        step: optimizer steps done so far, 0 ... steps - 1.
        base: the rate given on the command line; it is reached exactly and never scaled.
        warmup: steps of the warm-up; the first step already moves the weights.
        cooldown: share of the run, at its end, in which the rate falls; 1 is a plain cosine.
    """
    warmup_factor = min(1.0, (step + 1) / max(1, warmup))
    cooldown_steps = cooldown * steps
    steps_left = steps - step
    if steps_left >= cooldown_steps:
        return base * warmup_factor
    return base * warmup_factor * 0.5 * (1 - math.cos(math.pi * steps_left / cooldown_steps))


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Flags of every training. A stage adds its own, and may change a default."""

    RENAMED: ClassVar[Mapping[str, str]] = RENAMED
    ESSENTIAL: ClassVar[Sequence[str]] = (
        *("data", "vae", "out", "text_encoder", "preset", "size", "steps", "batch_size"),
        *("held_out", "device"),
    )
    GROUPS: ClassVar[Groups] = {
        "data": ("data", "held_out", "skip_unusable"),
        "model": ("preset",),
        "training": (
            *("steps", "batch_size", "learning_rate", "warmup", "cooldown"),
            *("accumulate", "seed"),
        ),
        "checks before training": (
            *("dry_run", "images_per_second", "find_batch_size", "overfit"),
        ),
        "output": ("out", "override", "evaluate_every", "save_every", "log_every", "wandb"),
        "machine": (*("device", "precision", "compile", "workers", "rank_timeout"),),
    }

    NEEDS: ClassVar[Needs] = (
        needs("images_per_second", dry_run=True),
        needs("find_batch_size", dry_run=False),
        needs("dry_run", "find_batch_size", overfit=False),
    )

    data: Path  # folder of captioned images, or shards: 'shards/{000..099}.tar'
    out: Path  # run folder; the same command again resumes the run
    preset: str = "small-64"  # sets the architecture and the defaults of the other flags
    steps: Positive[int] = 20_000  # optimizer steps
    batch_size: Positive[int] = 16  # images per step, over all GPUs
    learning_rate: Positive[float] = 1e-3  # after the warm-up; not scaled by the batch size
    warmup: NonNegative[int] = 100  # steps in which the learning rate rises from 0
    cooldown: Fraction = 0.5  # fraction of the run, at its end, in which the rate falls to 0
    held_out: FractionBelowOne = 0.02  # fraction of the images used for validation, not trained on
    accumulate: Positive[int] = 1  # split each batch into so many parts, to save memory
    precision: PrecisionName = "auto"  # of the arithmetic; auto: bf16 where the hardware has it
    log_every: Positive[int] = 20  # steps between lines of metrics.jsonl
    evaluate_every: Positive[int] = 500  # steps between previews and evaluations
    save_every: Positive[int] = 500  # steps between saved states, from which a run can resume
    workers: NonNegative[int] = 4  # processes that decode images, if memory cannot hold them all
    skip_unusable: bool = False  # leave out images that cannot be read
    seed: int = 0  # of the weights, the order of the data, and the noise
    device: str = "auto"  # cpu, cuda, mps; auto: the first GPU there is, else the CPU
    compile: bool = False  # compile the networks: takes minutes at the start, then steps are faster
    rank_timeout: Positive[float] = 1800  # seconds without progress until a rank counts as hung
    wandb: str | None = None  # also log to this project of Weights & Biases
    dry_run: bool = False  # print the plan, the memory, time and disk that it needs, then exit
    # speed that --dry-run plans with; left out: that of an earlier run in --out
    images_per_second: Positive[float] | None = None
    find_batch_size: bool = False  # measure which batch sizes fit and how fast they are, then exit
    overfit: NonNegative[int] = 0  # check that so many images can be memorized, then exit
    override: Override = ()  # resume the run with these flags changed, such as steps=900

    def check(self) -> None:
        """Raise UserError for flags that do not go together."""
        if self.batch_size % self.accumulate:
            raise UserError(
                f"a batch of {self.batch_size} does not divide into {self.accumulate} equal parts. "
                "Let --accumulate be a divisor of --batch-size."
            )

    @property
    def images_at_once(self) -> int:
        """Images of a batch that are in the memory of one GPU at the same time, at most."""
        share = -(-self.batch_size // world_size())
        return -(-share // self.accumulate)

    @property
    def divides_batches(self) -> bool:
        """Whether a batch can be computed in parts."""
        return True

    def plan(self) -> Plan:
        """Return what the training loop needs to know."""
        return Plan(
            steps=self.steps,
            images_per_step=self.batch_size,
            save_every=self.save_every,
            evaluate_every=self.evaluate_every,
            log_every=self.log_every,
            rank_timeout=self.rank_timeout,
        )

    def rate(self, step: int) -> float:
        """Return the learning rate of a step."""
        return learning_rate(
            step,
            base=self.learning_rate,
            steps=self.steps,
            warmup=self.warmup,
            cooldown=self.cooldown,
        )


@dataclass(frozen=True, kw_only=True)
class EMATrainingConfig(TrainingConfig):
    """Flags of a training that averages the weights of its model."""

    GROUPS: ClassVar[Groups] = extended(
        TrainingConfig.GROUPS,
        {"averaged weights": ("ema_halflife", "averages_every", "averages_half")},
    )

    NEEDS: ClassVar[Needs] = (needs("averages_half", averages_every=True),)

    ema_halflife: Positive[int] = 6400  # of the averaged weights (EMA), in images
    averages_every: NonNegative[int] = 0  # steps between averages stored for training.tools.posthoc
    averages_half: bool = True  # store these in float16

    @property
    def ema_halflife_steps(self) -> float:
        return self.ema_halflife / self.batch_size
