"""The flags that all trainings share, and what follows from them alone."""

from dataclasses import dataclass
from pathlib import Path

from foundation.errors import UserError
from training.bounds import NotNegative, Part, Positive, Share
from training.loop import Plan
from training.optimizer import learning_rate
from training.precision import PrecisionName


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A stage adds its own flags below these, and may change a default."""

    data: Path  # folder of captioned images, or shards: 'shards/{000..099}.tar'
    out: Path  # run folder; the same command again resumes it
    preset: str = "small-64"  # architecture and recipe
    steps: Positive[int] = 20_000  # optimizer steps
    batch_size: Positive[int] = 16  # images per step
    learning_rate: Positive[float] = 1e-3  # reached after the warm-up; used as given, never scaled
    warmup: NotNegative[int] = 100  # steps until the learning rate is reached
    cooldown: Share = 0.5  # share of the run, at its end, in which the rate falls to 0
    held_out: Part = 0.02  # share of the images kept to judge by
    accumulate: Positive[int] = 1  # parts that a batch is computed in, one by one; saves memory
    precision: PrecisionName = "auto"  # of the arithmetic; auto: bf16 where the hardware has it
    log_every: Positive[int] = 20  # steps between lines of metrics.jsonl
    look_every: Positive[int] = 500  # steps between previews and measurements on what is held out
    save_every: Positive[int] = 500  # steps between saved states
    workers: NotNegative[int] = 4  # processes that decode images, if memory cannot hold them
    skip_unusable: bool = False  # leave out images that cannot be read
    seed: int = 0  # of everything that is random
    device: str = "auto"  # cpu, cuda, mps; auto takes what is there
    rank_timeout: Positive[float] = 1800  # seconds without a step until a rank counts as hanging
    wandb: str | None = None  # show the run in this project of Weights & Biases, too
    dry_run: bool = False  # print the plan and stop
    find_batch_size: bool = False  # try larger and larger batches, say what fits and pays, and stop
    overfit: NotNegative[int] = 0  # train on so many images, see that they are learned, and stop
    override: tuple[str, ...] = ()  # steps=900 ...: flags that may differ from the run resumed

    def check(self) -> None:
        """Refuses flags that do not go together."""
        if self.batch_size % self.accumulate:
            raise UserError(
                f"a batch of {self.batch_size} does not divide into {self.accumulate} equal parts. "
                "Let --accumulate be a divisor of --batch-size."
            )

    def plan(self) -> Plan:
        return Plan(
            steps=self.steps,
            images_per_step=self.batch_size,
            save_every=self.save_every,
            evaluate_every=self.look_every,
            log_every=self.log_every,
            rank_timeout=self.rank_timeout,
        )

    def rate(self, step: int) -> float:
        """The learning rate of this step."""
        return learning_rate(
            step,
            base=self.learning_rate,
            steps=self.steps,
            warmup=self.warmup,
            cooldown=self.cooldown,
        )


@dataclass(frozen=True, kw_only=True)
class AveragingRecipe(Recipe):
    """Of a training whose model has averaged weights."""

    ema_halflife: Positive[int] = 6400  # of the averaged weights, in images
    averages_every: NotNegative[int] = 0  # steps between averages stored for training.tools.posthoc
    averages_half: bool = True  # store these in float16

    @property
    def ema_halflife_steps(self) -> float:
        return self.ema_halflife / self.batch_size
