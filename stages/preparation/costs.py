"""What a preset costs: memory and time of each stage, before anything is started."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from foundation.errors import one_line
from stages.plan import speed_of_run
from stages.preparation.all_stages import AllStages, StageWork, similar_run
from training.config import TrainingConfig
from training.device import pick_device, total_memory
from training.precision import DTYPES, Precision
from training.tools.memory_estimate import MOST_PARTS, estimate_memory
from training.tools.operations import SHARES, FlopCount, estimate_speed

HOW_ESTIMATED = (
    "Estimated times: the operations of a step, divided by {share:.0%} of the operations per "
    "second of a product of matrices on this device. They can be wrong by a factor of two; a run "
    "with the same preset measures them. Encoding the images, evaluations and previews come on top."
)


@dataclass(frozen=True)
class StageCost:
    """What a stage costs on a device.

    Args:
        memory: bytes of a step.
        seconds: of the whole training.
        run: whose speed was taken; None: the time is estimated.
    """

    script: str
    config: TrainingConfig
    memory: int
    seconds: float
    run: Path | None

    @property
    def size(self) -> int | None:
        """Side of the images in pixels."""
        return getattr(self.config, "size", None)

    @property
    def source(self) -> str:
        """Where the time comes from, in words."""
        return "estimated" if self.run is None else f"measured in {one_line(self.run)}"


# (memory, operations per image) by what they depend on: counting them takes seconds
counted: dict[tuple[object, ...], tuple[int, float]] = {}


def stage_costs(stages: AllStages, runs: Path | None = None) -> Iterator[StageCost]:
    """Yield what each stage costs on the device of the trainings.

    runs: the speed of one with the same script, preset and batch size is taken.
    """
    device = pick_device(stages.device)
    kind = (stages.preset, stages.condition, stages.task, device.type)
    for stage in stages.works():
        config = stage.config
        key = (stage.script, *kind, config.batch_size)
        if key not in counted:
            counted[key] = count(stage, Precision(device, config.precision))
        memory, operations = counted[key]
        run = None if runs is None else similar_run(runs, stage.script, config)
        speed = None if run is None else speed_of_run(run)
        if not speed:
            run, name = None, Precision(device, config.precision).name
            speed = estimate_speed(operations, device, DTYPES[name])
        seconds = config.steps * config.batch_size / speed
        yield StageCost(stage.script, config, memory, seconds, run)


def count(stage: StageWork, precision: Precision) -> tuple[int, float]:
    """Return the bytes of a step, and its operations per image."""
    images, parts = stage.config.images_at_once, stage.config.accumulate
    counter = FlopCount()
    work = stage.work(stage.config)
    memory = estimate_memory(work, images, parts, precision, counter)
    return memory.total, counter.total / (images * min(parts, MOST_PARTS))


def describe_estimate(stages: AllStages) -> str:
    """Return how the times of stages that never ran were estimated."""
    device = pick_device(stages.device)
    return HOW_ESTIMATED.format(share=SHARES.get(device.type, SHARES["cuda"]))


def fits(stages: AllStages, memory: int) -> bool:
    """Return whether the device has this memory, as far as it is known."""
    total = total_memory(pick_device(stages.device))
    return total is None or memory < total
