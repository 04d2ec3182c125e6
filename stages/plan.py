"""What is said before a training begins: what it needs, how long it takes, and what looks wrong.

`--dry-run` prints all of it. Every training prints the remarks, and refuses what the memory of the
device cannot hold.
"""

import math
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import nn

from dataset.checking.planned_run import PlannedRun, judge, judge_images
from dataset.table import PairList
from foundation.errors import UserError
from ldm.config import Prediction, ScheduleConfig
from ldm.schedule import make_schedule
from ldm.validation import FEW_HELD_OUT, only_held_out
from stages.flags.diffusion import DiffusionTrainingConfig
from training.checkpoint import KEPT_STATES
from training.config import EMATrainingConfig, TrainingConfig
from training.device import total_memory
from training.flags import with_flags
from training.logging.metrics import read_metrics
from training.logging.progress import format_duration
from training.memory import format_bytes
from training.precision import Precision
from training.tools.memory_estimate import (
    GPUS,
    RESERVE,
    Context,
    GPUPrecision,
    MemoryEstimate,
    StepWork,
    estimate_memory,
    tensor_bytes,
)
from training.weights.posthoc_ema import bytes_per_file

Config = TypeVar("Config", bound=TrainingConfig)
# Far more than any step needs per pixel of its images, with LPIPS and discriminator in fp32: 60 kB
# were measured. Where even that fits, nothing has to be estimated.
SPEED = "images_per_second"  # in metrics.jsonl
MOST_PER_PIXEL = 200_000  # bytes
NAMED_IN_REMARKS = (
    *("batch_size", "caption_dropout", "ema_halflife", "held_out", "save_every"),
    *("prediction", "clip_range"),
)
LEAST_ALPHA = 1e-3  # where a prediction of the noise still says something about the image
ENOUGH_HELD_OUT = 16  # images that are suggested in their place
MOST_HELD_OUT = 0.2  # of the images; more are missed in training
ENCODER_SIDE = 96  # pixels, at most, of the images of stage 0, if its config names no size


@dataclass(frozen=True, kw_only=True)
class RunPlan(Generic[Config]):
    """A run that is about to begin.

    Args:
        training: its script, such as train_ldm.py.
        work: returns what a step with other settings would compute.
        pairs: that are trained on.
        held_out: how many are not.
        cache: bytes of the latent cache; 0 without one.
        keeps_best: whether the best model is kept next to the last one.
        similar: a run with the same preset, whose speed stands for that of this one.
    """

    training: str
    config: Config
    device: torch.device
    work: Callable[[Config], StepWork]
    pairs: PairList
    held_out: int = 0
    cache: int = 0
    keeps_best: bool = False
    similar: Path | None = None

    def memory(self, config: Config | None = None, on_gpu: bool = False) -> MemoryEstimate:
        """Estimate the memory of a step.

        Args:
            config: other settings than those of the run.
            on_gpu: on a GPU that has bf16, whatever the device is.
        """
        config = config or self.config
        precision: Context = Precision(self.device, config.precision)
        if on_gpu and self.device.type != "cuda":
            precision = GPUPrecision(config.precision != "fp32")
        elif self.device.type != "cpu":
            precision = GPUPrecision(precision.name != "fp32")
        images, parts = config.images_at_once, config.accumulate
        return estimate_memory(self.work(config), images, parts, precision)

    def bytes_at_once(self, batch_size: int) -> int:
        """Return the memory that a step with so many images at once needs."""
        return self.memory(replace(self.config, batch_size=batch_size, accumulate=1)).total

    def describe(self) -> str:
        """Return what the run will need, in a few lines."""
        gpu = self.memory(on_gpu=True)
        lines = [gpu.describe("on a GPU")]
        if self.device.type != "cuda":
            lines.insert(0, self.memory().describe(f"on {name_of(self.device)}"))
        lines += [self.describe_gpu(gpu), self.describe_time(), *self.describe_disk()]
        return "\n".join(lines)

    def describe_gpu(self, memory: MemoryEstimate) -> str:
        """Return which GPU suffices; if none does, the flags with which the largest one does."""
        if memory.gpu is not None:
            return f"it fits a GPU of {memory.gpu} GB, if nothing else runs there."
        largest = GPUS[-1]
        ways = self.ways_to_fit(lambda config: self.memory(config, on_gpu=True).fits(largest))
        return f"it does not fit a GPU of {largest} GB. {ways}"

    def ways_to_fit(self, fits: Callable[[Config], bool]) -> str:
        """Return a sentence with the flags with which a step fits."""
        config, found = self.config, list[str]()
        with_less = {"gradient_checkpointing": True}
        changes: list[dict[str, Any]] = [{}]
        if not getattr(config, "gradient_checkpointing", True):
            changes.append(with_less)
        for change in changes:
            changed = replace(config, **change)
            if (smaller := first_that_fits(smaller_steps(changed), fits)) is not None:
                found.append(flags_of(smaller, config))
        if found:
            return f"It fits with {', or with '.join(found)}."
        return "Not even one image at once fits. Use a smaller preset or smaller images (--size)."

    # Time and disk.

    def describe_time(self) -> str:
        """Return how long the run takes at the speed that was given, or that it has had so far."""
        config, speed, source = self.config, self.config.images_per_second, "as given"
        for run in (config.out, self.similar):
            if speed is None and run is not None:
                speed, source = speed_of_run(run), f"as measured in {run}"
        images = config.steps * config.batch_size
        if speed is None:
            return (
                f"time: {images:,} images divided by the images per second. Measure these with "
                "--find-batch-size, or see docs/hardware.md, and give them: --images-per-second N."
            )
        duration = format_duration(images / speed)
        return f"time: {duration} for {images:,} images at {speed:.4g} images/s, {source}."

    def describe_disk(self) -> Iterator[str]:
        """Yield lines on the disk that latent cache, states and model take."""
        state, model, cache = self.state_bytes(), self.model_bytes(), self.cache
        states, most = (KEPT_STATES + 1) * state, self.disk_bytes()
        text = f"disk: {format_bytes(most)} at most: "
        text += f"latent cache {format_bytes(cache)}, " if cache else ""
        yield text + (
            f"states {format_bytes(states)} ({KEPT_STATES} are kept while another one of "
            f"{format_bytes(state)} is written), model {format_bytes(model)}"
            f"{f', best model {format_bytes(model)}' if self.keeps_best else ''}."
        )
        free = free_disk(self.config.out)
        if free < most:
            yield f"REMARK: only {format_bytes(free)} are free on the disk of {self.config.out}."

    def disk_bytes(self) -> int:
        """Return the bytes on the disk that the run takes at most."""
        # While a better one is written, the best so far is still there; the last comes after both.
        models = self.model_bytes() * (2 if self.keeps_best else 1)
        return (KEPT_STATES + 1) * self.state_bytes() + models + self.cache

    def state_bytes(self) -> int:
        """Return the size of a state: weights, two moments of each that learns, averages."""
        work = self.work(self.config)
        learned = tensor_bytes([w for w in weights_of(work.trained) if w.requires_grad])
        if getattr(self.config, "lora", None):  # the rest is in the model that it changes
            return 4 * learned
        return tensor_bytes(weights_of(work.trained)) + 2 * learned + work.averaged

    def model_bytes(self) -> int:
        """Return the size of the model: the averaged weights, and in stage 2 the encoders."""
        work = self.work(self.config)
        if getattr(self.config, "lora", None):
            return tensor_bytes([w for w in weights_of(work.trained) if w.requires_grad])
        frozen = weights_of(work.frozen) if self.training == "train_ldm.py" else []
        return tensor_bytes([*weights_of(work.trained[:1]), *frozen])

    # Before the first step.

    def print_remarks(self) -> None:
        """Print what looks like a mistake."""
        for remark in self.remarks():
            print(remark)

    def remarks(self) -> list[str]:
        """Return a line on each thing that looks like a mistake."""
        remarks = judge(planned_run(self.training, self.config), len(self.pairs))
        if size := getattr(self.config, "size", None):
            remarks += judge_images(self.pairs, size)
        remarks += judge_held_out(self.held_out, len(self.pairs) + self.held_out)
        if isinstance(self.config, DiffusionTrainingConfig):
            remarks += judge_prediction(self.config.objective.prediction, self.config.schedule)
        return [f"REMARK: {with_flags(remark, NAMED_IN_REMARKS)}" for remark in remarks]

    def check_memory(self) -> None:
        """Raise UserError if the device has less memory than a step needs."""
        total = total_memory(self.device)
        if total is None or self.surely_needs() < total:
            return

        def room(memory: MemoryEstimate) -> bool:
            return memory.total + self.reserve <= total

        memory = self.memory()
        if not room(memory):
            where = name_of(self.device)
            raise UserError(
                f"a step needs about {format_bytes(memory.total + self.reserve)} of memory, and "
                f"{where} has {format_bytes(total)}. "
                f"{self.ways_to_fit(lambda config: room(self.memory(config)))}"
            )

    def surely_needs(self) -> int:
        """Return more bytes than a step needs, without estimating anything."""
        work = self.work(self.config)
        weights = tensor_bytes(weights_of(work.trained))
        side = getattr(self.config, "size", None) or ENCODER_SIDE
        pixels = side**2 * self.config.images_at_once
        return 5 * weights + work.averaged + pixels * MOST_PER_PIXEL

    @property
    def reserve(self) -> int:
        """Bytes that the driver takes."""
        return int(RESERVE) if self.device.type == "cuda" else 0


def judge_held_out(held_out: int, images: int) -> list[str]:
    """Return a remark if validation on the images held out, a few of all, would say little."""
    fraction = min(math.ceil(100 * ENOUGH_HELD_OUT / images) / 100, MOST_HELD_OUT)
    if not 0 < held_out < min(FEW_HELD_OUT, int(fraction * images)):
        return []
    return [
        f"{only_held_out(held_out)} for validation, so its figures say little. Use held_out "
        f"{fraction:g}, which takes {round(fraction * images)} of the {images}."
    ]


def judge_prediction(prediction: Prediction, config: ScheduleConfig) -> list[str]:
    """Return a remark if a small error of the network becomes a large one of the image.

    The clean latents that follow from a prediction of the noise are (z - sigma noise) / alpha.
    """
    schedule = make_schedule(config)
    alpha, _ = schedule.exact(torch.tensor([len(schedule) - 1]))
    if prediction != "noise" or alpha.item() > LEAST_ALPHA:
        return []
    return [
        f"the network would predict the noise, and hardly anything of the image is left at the "
        f"noisiest time (alpha {alpha.item():.1g}), so a small error there spoils the whole "
        "picture. Use prediction='velocity', or draw with clip_range 4."
    ]


def planned_run(training: str, config: TrainingConfig) -> PlannedRun:
    """Return the settings that remarks are made on."""
    return PlannedRun(
        training,
        config.steps,
        config.batch_size,
        getattr(config, "size", None),
        warmup=config.warmup,
        cooldown=config.cooldown,
        ema_halflife=getattr(config, "ema_halflife", None),
        save_every=config.save_every,
        caption_dropout=getattr(config, "caption_dropout", 0.0),
    )


def smaller_steps(config: Config) -> list[Config]:
    """Return the same training with fewer and fewer images at once.

    Stage 0 compares all images of a batch, so it cannot be divided; there the batch gets smaller.
    """
    size = config.batch_size
    if not config.divides_batches:
        halves = [size >> k for k in range(size.bit_length()) if size >> k > 1]
        return [replace(config, batch_size=half) for half in halves]
    parts = [k for k in range(config.accumulate, size + 1) if size % k == 0]
    return [replace(config, accumulate=k) for k in parts]


def first_that_fits(choices: list[Config], fits: Callable[[Config], bool]) -> Config | None:
    """Return the first of choices that fits, where each needs less than the one before."""
    low, high = 0, len(choices)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(choices[middle]) else (middle + 1, high)
    return choices[low] if low < len(choices) else None


def flags_of(config: Config, old: Config) -> str:
    """Return the flags in which a config differs from another one, for the command line."""
    names = ("gradient_checkpointing", "batch_size", "accumulate")
    changed = [n for n in names if getattr(config, n, None) != getattr(old, n, None)]
    words = [f"--{name.replace('_', '-')} {getattr(config, name)}" for name in changed]
    return " ".join(words).replace(" True", "")


def weights_of(modules: Any) -> list[nn.Parameter]:
    return [weight for module in modules for weight in module.parameters()]


def name_of(device: torch.device) -> str:
    return "this CPU" if device.type == "cpu" else f"this device ({device})"


def speed_of_run(run: Path) -> float | None:
    """Return the median of the images per second in a run's metrics; None if there are none."""
    lines = read_metrics(run / "metrics.jsonl")
    speeds = sorted(line[SPEED] for line in lines if isinstance(line.get(SPEED), int | float))
    return float(speeds[len(speeds) // 2]) if speeds else None


def free_disk(folder: Path) -> int:
    """Return the bytes that are free where a folder lies or will lie."""
    folder = folder.absolute()
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def describe_averages(config: EMATrainingConfig, module: nn.Module) -> str:
    """Return a line on the EMA's half-life, and on the files of averages if they are stored."""
    steps = f"{config.ema_halflife_steps:,.4g} steps"
    text = f"averaged weights: half-life {config.ema_halflife:,} images, {steps}"
    if not config.averages_every:
        return f"{text}."
    files = -(-config.steps // config.averages_every)
    size = bytes_per_file(module.parameters(), config.averages_half)
    return (
        f"{text}; and {files} files of {format_bytes(size)}, {format_bytes(files * size)} in all, "
        "for training.tools.posthoc."
    )
