"""python benchmarks/hardware_table.py > table.md

Prints the tables of docs/hardware.md: what fits which GPU, with which flags, and how long the
recipes would take there. Memory is estimated as by --dry-run. Speed is estimated from the number of
operations of a step, the peak of a GPU, and the share of it that is reached; nothing is measured.
It needs no GPU, and takes ten minutes on one core.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, cast

sys.path.insert(0, str(Path(__file__).parents[1]))  # prefer this checkout to an installed version

from stages.flags import autoencoder, clip, diffusion
from training.cli import answer_early, parse, preset_config, run_main
from training.config import TrainingConfig

PRESETS = ("small-128", "base-128", "base-256", "base-512", "sd15")


@dataclass(frozen=True, kw_only=True)
class Options:
    preset: tuple[str, ...] = PRESETS  # rows to print
    stage: tuple[int, ...] = (0, 1, 2)  # tables to print


if __name__ == "__main__":
    answer_early(Options, __doc__)  # the imports below take seconds


import torch
from torch import nn

from autoencoder import PRESETS as AUTOENCODERS
from autoencoder import Autoencoder
from conditioning import TextEncoder
from conditioning.clip import PRESETS as CLIPS
from conditioning.clip import Clip
from conditioning.open_clip_weights import TEXT_KEYS
from stages.autoencoder import build_networks
from stages.build_unet import build_unet
from stages.condition import TextCondition
from stages.memory import autoencoder_work, clip_work, diffusion_work
from stages.plan import first_that_fits, smaller_steps
from training.precision import Precision
from training.tools.memory_estimate import (
    GPUS,
    GPUPrecision,
    MemoryEstimate,
    StepWork,
    estimate_memory,
)
from training.tools.operations import SHARES, count_operations

CPU = torch.device("cpu")
LIGHT = ("small-128",)
STAGES = {0: ("base-256",), 1: PRESETS, 2: PRESETS}
OPENAI_TEXT = (77, 768, 123_060_480)  # tokens, width, weights of the text encoder of SD 1.x
# Products of bf16 matrices with fp32 sums, without sparsity, in 10^12 operations per second, from
# NVIDIA's white papers and data sheets. One card of each size of memory.
CARDS = {
    8: ("RTX 3070", 40.6),
    12: ("RTX 4070", 58.3),
    16: ("RTX 4080", 97.5),
    24: ("RTX 4090", 165.2),
    40: ("A100", 312.0),
    48: ("L40S", 362.0),
    80: ("H100 SXM", 989.0),
}


def main(argv: Sequence[str] | None = None) -> None:
    for line in tables(parse(Options, argv, __doc__)):
        print(line, flush=True)


def tables(options: Options) -> Iterator[str]:
    """Yield the lines of all tables."""
    chosen = [(s, p) for s in options.stage for p in STAGES[s] if p in options.preset]
    yield "| preset | " + " | ".join(f"{gpu} GB" for gpu in GPUS) + " |"
    yield "|---" * (len(GPUS) + 1) + "|"
    for stage, preset in chosen:
        yield from memory_rows(Training(stage, preset))
    yield ""
    names = " | ".join(f"{name}, {gpu} GB" for gpu, (name, _) in CARDS.items())
    yield f"| preset | TFLOP per image | million images | {names} |"
    yield "|---" * (len(CARDS) + 3) + "|"
    for stage, preset in chosen:
        if preset in LIGHT:
            continue  # so small that a GPU would mostly wait for the next operation
        yield speed_row(Training(stage, preset))


def memory_rows(training: "Training") -> Iterator[str]:
    """Yield rows on which GPU a step fits, without and with gradient checkpointing."""
    config = training.config
    yield f"| {training}, {config.batch_size} images | {memory_cells(training, config)} |"
    if training.stage == 2:
        config = replace(config, gradient_checkpointing=True)
        yield f"| ... with `--gradient-checkpointing` | {memory_cells(training, config)} |"


def memory_cells(training: "Training", config: TrainingConfig) -> str:
    return " | ".join(memory_cell(training, config, gpu) for gpu in GPUS)


def memory_cell(training: "Training", config: TrainingConfig, gpu: int) -> str:
    """Return how many images at once fit a GPU, and the flag for it."""
    choices = smaller_steps(replace(config, accumulate=1))
    found = first_that_fits(choices, lambda config: training.memory(config).fits(gpu))
    if found is None:
        return "no"
    if not config.divides_batches:
        return f"{found.images_at_once}: `--batch-size {found.batch_size}`"
    return f"{found.images_at_once}: `--accumulate {found.accumulate}`"


def speed_row(training: "Training") -> str:
    """Return a row on images per second and the time of the recipe."""
    images, tflop = training.config.steps * training.config.batch_size, training.tflop
    cells: list[str] = []
    for gpu, (_, peak) in CARDS.items():
        speed = SHARES["cuda"] * peak / tflop
        fits = training.fits_somehow(gpu)
        cells.append(
            f"{describe_rate(speed)}/s, {describe_hours(images / speed / 3600)}" if fits else "no"
        )
    return f"| {training} | {tflop:.3g} | {images / 1e6:.3g} | {' | '.join(cells)} |"


def describe_rate(rate: float) -> str:
    """Write a rate with three digits that count."""
    rounded = float(f"{rate:.3g}")
    return f"{rounded:,.0f}" if rounded >= 100 else f"{rounded:.3g}"


def describe_hours(hours: float) -> str:
    if hours < 72:
        return f"{hours:.2g} h"
    return f"{hours / 24:,.0f} days"


class Training:
    """A stage with a preset, whose networks have no data."""

    def __init__(self, stage: int, preset: str):
        self.stage, self.preset = stage, preset
        self.config, self.work = (encoder, first_stage, second_stage)[stage](preset)
        self.divisor = "accumulate" if self.config.divides_batches else "batch-size"
        self.memory = cache(self.estimate)

    def __str__(self) -> str:
        return f"stage {self.stage}, `{self.preset}`"

    def estimate(self, config: TrainingConfig) -> MemoryEstimate:
        images, parts = config.images_at_once, config.accumulate
        return estimate_memory(self.work(config), images, parts, GPUPrecision())

    def fits_somehow(self, gpu: int) -> bool:
        """Return whether one image at once fits, with gradient checkpointing if there is that."""
        config = smaller_steps(self.config)[-1]
        if self.stage == 2:
            config = replace(config, gradient_checkpointing=True)
        return self.memory(config).fits(gpu)

    @property
    def tflop(self) -> float:
        """Operations of a step per image: forward and backward pass, in 10^12."""
        images = 1 if self.config.divides_batches else 2
        work = self.work(replace(self.config, batch_size=images, accumulate=1))
        return count_operations(work, images, Precision(CPU, "bf16")) / 1e12


Work = Callable[[Any], StepWork]
Config = TypeVar("Config", bound=TrainingConfig)


def encoder(preset: str) -> tuple[TrainingConfig, Work]:
    config = with_preset(clip.ClipTrainingConfig, clip.PRESETS, preset)
    network = Clip(CLIPS[preset])
    return config, lambda config: clip_work(config, network)


def first_stage(preset: str) -> tuple[TrainingConfig, Work]:
    """Return config and work of stage 1; LPIPS has random weights, and no data is looked at."""
    kind, presets = autoencoder.AutoencoderTrainingConfig, autoencoder.PRESETS
    config = with_preset(kind, presets, preset, dry_run=True)
    with torch.device("meta"):
        networks = build_networks(config, torch.device("meta"))
    return config, lambda config: autoencoder_work(config, networks)


def second_stage(preset: str) -> tuple[TrainingConfig, Work]:
    kind, presets = diffusion.DiffusionTrainingConfig, diffusion.PRESETS
    given = {"vae": Path(), "text_encoder": "", "text_chunks": 1}
    config = with_preset(kind, presets, preset, **given, gradient_checkpointing=False)
    condition = TextCondition(cast(TextEncoder, TextWeights(*text_size(preset))))
    with torch.device("meta"):
        vae = Autoencoder(AUTOENCODERS[preset]).requires_grad_(False)
        unet = build_unet(config, vae, condition)
    return config, lambda config: diffusion_work(config, unet, vae, condition)


class TextWeights(nn.Module):
    """In place of a text encoder, of which only the size matters."""

    def __init__(self, tokens: int, width: int, weights: int):
        super().__init__()
        self.tokens, self.width = tokens, width
        self.weights = nn.Parameter(torch.empty(weights, device="meta"), requires_grad=False)


def text_size(preset: str) -> tuple[int, int, int]:
    """Return tokens, width and weights of the text encoder that a preset is trained with."""
    if preset not in CLIPS:
        return OPENAI_TEXT
    network = Clip(CLIPS[preset])
    weights = network.network.state_dict().items()
    count = sum(tensor.numel() for name, tensor in weights if name.startswith(TEXT_KEYS))
    text = CLIPS[preset]["text_cfg"]
    return text["context_length"], text["width"], count


def with_preset(
    kind: type[Config], presets: dict[str, Any], preset: str, **settings: Any
) -> Config:
    values = vars(preset_config(kind, preset, presets))
    return kind(**{**values, "data": Path(), "out": Path(), **settings})


if __name__ == "__main__":
    run_main(main, Options)
