"""Stage 1: images -> autoencoder."""

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from autoencoder import PRESETS as ARCHITECTURES
from autoencoder import Autoencoder
from autoencoder.discriminator import DiscriminatorConfig, balance
from autoencoder.losses import LossConfig
from autoencoder.optimization import TrainingStep, prepare
from autoencoder.statistics import fold, measure, without_scaling
from evaluation.reconstruction import psnr
from imagetext.batches import ImageBatches
from imagetext.buckets import shapes_up_to
from imagetext.images import to_model, to_uint8
from stages.data import Aspect
from training.bounds import Positive
from training.ema import EMA
from training.grid import grid
from training.loop import say
from training.metrics import Averages
from training.precision import Precision
from training.recipe import Recipe
from training.run import Run
from training.seeding import derived_seed, generator

JUDGED = 256  # held-out images that the PSNR is measured on, at most
SHOWN = 16  # of them in a preview


@dataclass(frozen=True, kw_only=True)
class Config(Recipe):
    init_from: Path | None = None  # begin with this autoencoder, a folder or single file, instead
    size: Positive[int] = 64  # side of the training images in pixels
    max_aspect: Aspect = 1.0  # 2: also shapes up to 2:1 and 1:2, of the same area; 1: squares
    channels: int = 3  # 1 gray, 3 RGB, 4 RGBA
    clip_norm: Positive[float] = 1.0  # gradients are scaled down to this norm
    ema_halflife: Positive[float] = 0.02  # of the averaged weights, as a share of the run
    loss: LossConfig = field(default_factory=LossConfig)
    discriminator_rate: Positive[float] = 1.0  # learning rate, times that of the autoencoder
    discriminator_width: Positive[int] = 64  # channels of its first layer
    discriminator_layers: int = 3  # it judges patches of 16, 34 or 70 pixels with 1, 2 or 3
    statistics_images: Positive[int] = 4096  # that the latents are normalized on at the end


# Each preset is an architecture of the same name (autoencoder/autoencoder.py) and a recipe for it.
OFFLINE = LossConfig(reconstruction="l2", perceptual="none", adversarial_weight=0.0)
PRESETS = {
    "tiny-32": {"size": 32, "steps": 300, "learning_rate": 3e-3, "loss": OFFLINE},
    "demo": {
        "size": 48,
        "steps": 1400,
        "batch_size": 8,  # at equal time 2 dB better than 16, on CPUs without bf16
        "learning_rate": 3e-3,
        "cooldown": 1.0,
        "look_every": 350,
        "save_every": 350,
        "loss": OFFLINE,
    },
    "small-64": {
        "steps": 5000,
        "batch_size": 8,
        "learning_rate": 3e-3,
        "cooldown": 1.0,
        "look_every": 1000,
        "loss": OFFLINE,
    },
    "base-256": {"size": 256, "steps": 200_000, "batch_size": 32, "learning_rate": 1e-4},
    "sd15": {"size": 256, "steps": 400_000, "batch_size": 32, "learning_rate": 5e-5},
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
    shapes = shapes_up_to(config.max_aspect, config.size, autoencoder.factor)
    return prepare(
        autoencoder,
        config.loss,
        DiscriminatorConfig(
            in_channels=config.channels,
            width=config.discriminator_width,
            layers=config.discriminator_layers,
        ),
        size=min(map(min, shapes)),
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
        self.batches, self.stream, self.judged = batches, None, judged
        self.device = training.autoencoder.decoder.conv_out.weight.device
        self.ema = EMA(training.autoencoder, config.ema_halflife * config.steps)
        self.parts = {**training.parts, "ema": self.ema}
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
        names = {"discriminator", "logits_real", "logits_fake"} & metrics.keys()
        self.contest.add({name: metrics[name] for name in names})
        return metrics

    @torch.no_grad()
    def look(self, step: int) -> dict[str, float]:
        """PSNR of the averaged weights on images that were held out, and a picture of some."""
        values, shown = [], []
        for pixels in self.judged.split(self.config.batch_size):
            posterior = self.ema.module.encode(to_model(pixels.to(self.device)))
            again = to_uint8(self.ema.module.decode(posterior.mode())).cpu()
            values.append(psnr(pixels, again))
            difference = (again.float() - pixels.float()) / 2 + 127.5  # gray where they agree
            shown.append(torch.stack([pixels, again, difference.to(torch.uint8)], dim=1))
        rows = torch.cat(shown)[:SHOWN].flatten(0, 1)
        grid(rows, columns=3 * min(4, len(self.judged))).save(self.run.preview(step))
        if contest := self.contest.pop():
            say(f"discriminator: {balance(*contest.values())}")
        return {"psnr": torch.cat(values).mean().item()}

    def save(self) -> None:
        """Measures the latents of the averaged weights, folds that in, and writes the model."""
        count = min(self.config.statistics_images, self.batches.order.count)
        steps = range(max(1, count // self.config.batch_size))
        images = (to_model(self.batches[step][0].to(self.device)) for step in steps)
        statistics = measure(self.ema.module, images)
        provenance = {
            "config": self.run.config,
            "weights": "averaged over the last steps (EMA)",
            "latent_statistics_folded_in": asdict(statistics),
        }
        fold(self.ema.module, statistics).save(self.run.model, provenance)
