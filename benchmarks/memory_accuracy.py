"""python benchmarks/memory_accuracy.py

Compares the estimate of a training step's memory with the peak of real steps on this CPU, as
PyTorch's profiler counts it, and prints the table of docs/instruments.md. It takes a
minute, with --compile three.
"""

import gc
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # prefer this checkout to an installed version

from stages.flags import autoencoder, diffusion
from training.cli import answer_early, parse, preset_config, run_main
from training.config import PrecisionName


@dataclass(frozen=True, kw_only=True)
class Options:
    compile: bool = False  # also measure compiled steps


if __name__ == "__main__":
    answer_early(Options, __doc__)  # the imports below take seconds


import torch

from autoencoder import PRESETS as AUTOENCODERS
from autoencoder import Autoencoder
from autoencoder.training.config import LossConfig
from conditioning import TextEncoder
from conditioning.clip import PRESETS as CLIPS
from conditioning.clip import Clip
from stages.autoencoder import build_networks
from stages.before_training import trial_trainer
from stages.build_unet import build_unet
from stages.condition import TextCondition
from stages.memory import autoencoder_work, diffusion_work
from training.memory import format_bytes
from training.optimizer import OptimizerStep
from training.precision import Precision
from training.run import Run
from training.tools.find_batch_size import Step
from training.tools.memory_estimate import StepWork, estimate_memory
from training.weights.ema import EMA

CPU = torch.device("cpu")
WITHOUT_ADVERSARY = LossConfig(perceptual="none", adversarial_weight=0.0)
ADVERSARY = LossConfig(perceptual="none", discriminator_start=0, adversarial_start=0)


@dataclass(frozen=True, kw_only=True)
class Case:
    """A training step whose memory is estimated and measured."""

    stage: int
    preset: str
    batch_size: int = 8
    precision: PrecisionName = "fp32"
    accumulate: int = 1
    discriminator: bool = False
    checkpointing: bool = False
    compiled: bool = False

    def __str__(self) -> str:
        words = [
            ("CLIP", "autoencoder", "U-Net")[self.stage],
            f"`{self.preset}`",
            f"batch {self.batch_size}",
            f"in {self.accumulate} parts" if self.accumulate > 1 else "",
            self.precision,
            "discriminator" if self.discriminator else "",
            "gradient checkpointing" if self.checkpointing else "",
            "compiled" if self.compiled else "",
        ]
        return ", ".join(filter(None, words))


CASES = (
    Case(stage=1, preset="small-64", precision="bf16"),
    Case(stage=1, preset="small-64"),
    Case(stage=1, preset="small-64", accumulate=4),
    Case(stage=1, preset="small-64", discriminator=True),
    Case(stage=1, preset="small-64", accumulate=4, discriminator=True),
    Case(stage=2, preset="small-64", precision="bf16"),
    Case(stage=2, preset="small-64", precision="bf16", checkpointing=True),
    Case(stage=2, preset="small-64"),
    Case(stage=2, preset="small-64", checkpointing=True),
    Case(stage=2, preset="small-64", batch_size=32),
    Case(stage=2, preset="small-64", batch_size=32, accumulate=4),
    Case(stage=2, preset="small-64", batch_size=32, checkpointing=True),
)
COMPILED = (
    Case(stage=1, preset="small-64", compiled=True),
    Case(stage=2, preset="small-64", batch_size=32, compiled=True),
)


def main(argv: Sequence[str] | None = None) -> None:
    options = parse(Options, argv, __doc__)
    print("| step | estimated | measured | error |\n|---|---|---|---|")
    for case in (*CASES, *(COMPILED if options.compile else ())):
        estimated, measured = compare(case)
        print(
            f"| {case} | {format_bytes(estimated)} | {format_bytes(measured)} | "
            f"{estimated / measured - 1:+.1%} |",
            flush=True,
        )


def compare(case: Case) -> tuple[int, int]:
    """Return the estimated and the measured bytes of a step."""
    with tempfile.TemporaryDirectory() as folder:
        measured = peak_of_second_step(lambda: prepare(case, Path(folder))[1])
        work, _ = prepare(case, Path(folder) / "again")
        images = case.batch_size // case.accumulate
        precision = Precision(CPU, case.precision)
        return estimate_memory(work, images, case.accumulate, precision).total, measured


def prepare(case: Case, folder: Path) -> tuple[StepWork, Step]:
    """Return what a step computes and keeps, and the step itself."""
    settings: dict[str, Any] = {
        **{"data": folder, "out": folder, "preset": case.preset, "precision": case.precision},
        **{"batch_size": case.batch_size, "accumulate": case.accumulate},
        **{"compile": case.compiled, "steps": 100},
    }
    if case.stage == 1:
        settings["loss"] = ADVERSARY if case.discriminator else WITHOUT_ADVERSARY
        return prepare_autoencoder(settings)
    text_encoder = Clip(CLIPS[case.preset]).text_encoder()
    vae = Autoencoder(AUTOENCODERS[case.preset]).eval().requires_grad_(False)
    settings["gradient_checkpointing"] = case.checkpointing
    return prepare_diffusion(settings, vae, text_encoder, folder)


def prepare_autoencoder(settings: dict[str, Any]) -> tuple[StepWork, Step]:
    config = with_preset(autoencoder.AutoencoderTrainingConfig, autoencoder.PRESETS, settings)
    networks = build_networks(config, CPU)
    ema = EMA(networks.autoencoder, config.ema_halflife_steps)
    if config.compile:
        networks.autoencoder.compile_for_training()
    images = torch.zeros(config.batch_size, config.channels, config.size, config.size)
    noise = torch.zeros(networks.autoencoder.latent_shape(images))
    optimizer_step = OptimizerStep(networks.optimizers, config.clip_norm)
    rates = dict.fromkeys(networks.optimizers, 1e-4)

    def step(k: int) -> None:
        metrics = networks.backward(images, noise, config.steps - 1, config.accumulate)
        optimizer_step(metrics, rates)
        ema.update(networks.autoencoder, k)

    return autoencoder_work(config, networks), step


def prepare_diffusion(
    settings: dict[str, Any], vae: Autoencoder, text_encoder: TextEncoder, folder: Path
) -> tuple[StepWork, Step]:
    given = {"vae": folder, "text_encoder": "", "text_chunks": 1, **settings}
    config = with_preset(diffusion.DiffusionTrainingConfig, diffusion.PRESETS, given)
    condition = TextCondition(text_encoder)
    unet = build_unet(config, vae, condition)
    work = diffusion_work(config, unet, vae, condition)
    return work, trial_trainer(config, Run(folder, config), unet, vae, condition).step


def with_preset(kind: type[Any], presets: dict[str, Any], settings: dict[str, Any]) -> Any:
    config = preset_config(kind, settings["preset"], presets)
    return kind(**{**vars(config), **settings})


def peak_of_second_step(build: Callable[[], Step]) -> int:
    """Return the most bytes that tensors take in the second of two steps.

    build: makes the networks, the optimizer and the step; all their tensors are counted.
    """
    gc.collect()  # what is freed later would be subtracted
    with torch.profiler.profile(profile_memory=True) as profile:
        step = build()
        step(0)
        with torch.profiler.record_function("second step"):
            step(1)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "trace.json"
        profile.export_chrome_trace(str(file))
        events: list[dict[str, Any]] = json.loads(file.read_text())["traceEvents"]
    memory = sorted((e for e in events if e.get("name") == "[memory]"), key=lambda e: e["ts"])
    begin = next(e["ts"] for e in events if e.get("name") == "second step")
    before = memory[0]["args"]["Total Allocated"] - memory[0]["args"]["Bytes"]
    return max(e["args"]["Total Allocated"] for e in memory if e["ts"] >= begin) - before


if __name__ == "__main__":
    run_main(main, Options)
