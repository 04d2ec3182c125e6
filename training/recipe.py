"""The flags that all trainings share, and what follows from them alone."""

from dataclasses import dataclass
from pathlib import Path

from training.bounds import NotNegative, Part, Positive, Share
from training.learning_rate import learning_rate
from training.loop import Plan


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
    bf16: bool = True  # compute in bfloat16 where the hardware does; weights stay float32
    log_every: Positive[int] = 20  # steps between lines of metrics.jsonl
    look_every: Positive[int] = 500  # steps between previews and measurements on what is held out
    save_every: Positive[int] = 500  # steps between saved states
    workers: NotNegative[int] = 4  # processes that decode images, if memory cannot hold them
    skip_unusable: bool = False  # leave out images that cannot be read
    seed: int = 0  # of everything that is random
    device: str = "auto"  # cpu, cuda, mps; auto takes what is there
    dry_run: bool = False  # print the plan and stop

    def plan(self) -> Plan:
        return Plan(
            steps=self.steps,
            images_per_step=self.batch_size,
            save_every=self.save_every,
            look_every=self.look_every,
            log_every=self.log_every,
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
