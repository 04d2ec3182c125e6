"""Stage 1: images -> autoencoder."""

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from autoencoder import PRESETS as ARCHITECTURES
from autoencoder import Autoencoder
from autoencoder.discriminator import DiscriminatorConfig, balance
from autoencoder.losses import LossConfig
from autoencoder.optimization import TrainingStep, prepare
from autoencoder.statistics import fold, measure, without_scaling
from imagetext.batches import ImageBatches
from imagetext.images import to_model
from stages.held_out import HeldOut, perceptual_at_hand
from training.bounds import Positive
from training.ema import EMA
from training.grid import grid
from training.metrics import Averages
from training.posthoc import stored_averages
from training.precision import Precision
from training.recipe import AveragingRecipe
from training.run import Run
from training.seeding import derived_seed, generator

JUDGED = 256  # held-out images that are measured, at most
SHOWN = 16  # of them in a preview


@dataclass(frozen=True, kw_only=True)
class Config(AveragingRecipe):
    init_from: Path | None = None  # begin with this autoencoder, a folder or single file, instead
    size: Positive[int] = 64  # side of the training images in pixels
    channels: int = 3  # 1 gray, 3 RGB, 4 RGBA
    clip_norm: Positive[float] = 1.0  # gradients are scaled down to this norm
    loss: LossConfig = field(default_factory=LossConfig)
    discriminator_rate: Positive[float] = 1.0  # learning rate, times that of the autoencoder
    discriminator_width: Positive[int] = 64  # channels of its first layer
    discriminator_layers: int = 3  # it judges patches of 16, 34 or 70 pixels with 1, 2 or 3
    statistics_images: Positive[int] = 4096  # that the latents are normalized on at the end


# Each preset is an architecture of the same name (autoencoder/autoencoder.py) and a recipe for it.
OFFLINE = LossConfig(reconstruction="l2", perceptual="none", adversarial_weight=0.0)
PRESETS = {
    "tiny-32": {
        "size": 32,
        "steps": 300,
        "learning_rate": 3e-3,
        "ema_halflife": 96,
        "loss": OFFLINE,
    },
    "demo": {
        "size": 48,
        "steps": 1400,
        "batch_size": 8,  # at equal time 2 dB better than 16, on CPUs without bf16
        "learning_rate": 3e-3,
        "cooldown": 1.0,
        "ema_halflife": 224,
        "look_every": 350,
        "save_every": 350,
        "loss": OFFLINE,
    },
    "small-64": {
        "steps": 5000,
        "batch_size": 8,
        "learning_rate": 3e-3,
        "cooldown": 1.0,
        "ema_halflife": 800,
        "look_every": 1000,
        "loss": OFFLINE,
    },
    "base-256": {
        "size": 256,
        "steps": 200_000,
        "batch_size": 32,
        "learning_rate": 1e-4,
        "ema_halflife": 128_000,
    },
    "sd15": {
        "size": 256,
        "steps": 400_000,
        "batch_size": 32,
        "learning_rate": 5e-5,
        "ema_halflife": 256_000,
    },
}


def build(config: Config, device: torch.device) -> TrainingStep:
    """Networks and losses, new or from `init_from`. Whatever is missing is reported here."""
    torch.manual_seed(derived_seed(config.seed, "weights"))
    if config.init_from is None:
        channels = {"in_channels": config.channels, "out_channels": config.channels}
        architecture = replace(ARCHITECTURES[config.preset], sample_size=config.size, **channels)
        autoencoder = Autoencoder(architecture)
    else:
        autoencoder = without_scaling(Autoencoder.load(config.init_from))
    check(config, autoencoder)
    return prepare(
        autoencoder,
        config.loss,
        DiscriminatorConfig(
            in_channels=config.channels,
            width=config.discriminator_width,
            layers=config.discriminator_layers,
        ),
        size=config.size,
        steps=config.steps,
        device=device,
        precision=Precision(device, config.bf16),
        clip_norm=config.clip_norm,
        discriminator_rate=config.discriminator_rate,
    )


def check(config: Config, autoencoder: Autoencoder) -> None:
    factor, architecture = autoencoder.factor, autoencoder.config
    if config.size % factor:
        raise ValueError(
            f"--size {config.size} is not a multiple of {factor}, by which this autoencoder "
            f"shrinks images. Use --size {max(1, config.size // factor) * factor}."
        )
    if {architecture.in_channels, architecture.out_channels} != {config.channels}:
        raise ValueError(
            f"{config.init_from} has {architecture.in_channels} channels; "
            f"use --channels {architecture.in_channels}."
        )


class Stage:
    """What stage 1 does per step, at every look, and at the end."""

    def __init__(
        self,
        config: Config,
        run: Run,
        training: TrainingStep,
        batches: ImageBatches,
        judged: Tensor,
    ):
        self.config, self.run, self.training = config, run, training
        self.batches, self.stream = batches, None
        self.device = training.autoencoder.decoder.conv_out.weight.device
        perceptual = training.loss.perceptual or perceptual_at_hand(
            config.size, config.channels, self.device
        )
        self.held_out = HeldOut(judged, config.batch_size, self.device, perceptual)
        self.ema = EMA(training.autoencoder, config.ema_halflife_steps)
        self.parts = {**training.parts, "ema": self.ema}
        self.averages = stored_averages(
            run.path, config, training.autoencoder, "stages.vae_averages"
        )
        if self.averages is not None:
            self.parts["power_averages"] = self.averages
        self.contest = Averages()
        if self.device.type == "cuda":
            training.autoencoder.compile_for_training()

    def step(self, step: int) -> dict[str, Tensor]:
        config = self.config
        self.stream = self.stream or self.batches.stream(step)
        images = to_model(next(self.stream)[0].to(self.device, non_blocking=True))
        rate = config.rate(step)
        metrics = self.training(images, step, rate, generator(config.seed, "posterior", step))
        self.ema.update(self.training.autoencoder, step)
        if self.averages is not None:
            self.averages.update(self.training.autoencoder, step)
        names = {"discriminator", "logits_real", "logits_fake"} & metrics.keys()
        self.contest.add({name: metrics[name] for name in names})
        return metrics

    def look(self, step: int) -> dict[str, float | str]:
        """How well the averaged weights do on what was held out, and a picture of some of it."""
        seen = self.held_out.judge(self.ema.module)
        columns = 3 * min(4, len(self.held_out.pixels))
        grid(seen.pictures[: 3 * SHOWN], columns).save(self.run.preview(step))
        words = {"verdict/channels": seen.channels.describe()}
        if contest := self.contest.pop():
            words["verdict/discriminator"] = f"discriminator: {balance(*contest.values())}"
        return {**seen.numbers, **words}

    def save(self) -> None:
        """Measures the latents of the averaged weights, folds that in, and writes the model."""
        weights = "averaged over the last steps (EMA)"
        write_model(self.run, self.config, self.ema.module, self.batches, {"weights": weights})


def write_model(
    run: Run,
    config: Config,
    autoencoder: Autoencoder,
    batches: ImageBatches,
    facts: dict[str, Any],
    folder: Path | None = None,
) -> None:
    """With latents of zero mean and unit variance over a sample of the training images."""
    device = autoencoder.decoder.conv_out.weight.device
    count = min(config.statistics_images, batches.order.count)
    steps = range(max(1, count // config.batch_size))
    statistics = measure(autoencoder, (to_model(batches[k][0].to(device)) for k in steps))
    provenance = {
        "config": run.config,
        **facts,
        "latent_statistics_folded_in": asdict(statistics),
    }
    fold(autoencoder, statistics).save(folder or run.model, provenance)
