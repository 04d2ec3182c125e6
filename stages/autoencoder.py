"""Stage 1: images -> autoencoder."""

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from autoencoder import PRESETS as ARCHITECTURES
from autoencoder import Autoencoder
from autoencoder.half_precision import fits_float16, largest_activation
from autoencoder.training.discriminator import DiscriminatorConfig, describe_gan_balance
from autoencoder.training.latent_statistics import fold_statistics, measure_statistics
from autoencoder.training.loss import LossConfig
from autoencoder.training.step import AutoencoderTraining, prepare_training
from dataset.buckets import shapes_up_to
from dataset.images.pixel_format import RECORD, Layout, choose_format
from dataset.images.transform import ImageTransform, inspect_image, kind_of, to_model
from dataset.loader import ImageBatches
from dataset.members import Source
from foundation import collectives
from foundation.errors import UserError
from foundation.hashing import derived_seed, generators
from stages.data import Aspect
from stages.finetune import load_autoencoder, save_with_frozen_encoder
from stages.held_out import HeldOut, perceptual_at_hand
from training import distributed
from training.config import EMATrainingConfig, extended
from training.ema import EMA
from training.flags import Groups, Positive
from training.logging.image_grid import image_grid
from training.logging.metrics import RunningMeans
from training.optimizer import OptimizerStep
from training.posthoc_ema import track_averages
from training.precision import Precision
from training.run import Run
from training.watchdog import report_progress

JUDGED = 256  # held-out images that are measured, at most
SHOWN = 16  # of them in a preview


@dataclass(frozen=True, kw_only=True)
class Config(EMATrainingConfig):
    GROUPS: ClassVar[Groups] = extended(
        EMATrainingConfig.GROUPS,
        {
            "data": ("size", "max_aspect", "channels", "value_range", "layout"),
            "model": ("init_from", "freeze"),
            "training": ("clip_norm", "statistics_images"),
            "loss": ("loss",),
            "discriminator": ("discriminator_rate", "discriminator_width", "discriminator_layers"),
        },
    )

    init_from: Path | None = None  # begin with the weights of this autoencoder, a folder or file
    freeze: Literal["none", "encoder"] = "none"  # encoder: train the decoder alone
    size: Positive[int] = 64  # side of the training images in pixels
    max_aspect: Aspect = 1.0  # 1: squares; 2: also shapes up to 2:1 and 1:2, of the same area
    channels: Positive[int] = 3  # 1 gray, 3 RGB, 4 RGBA; or those of TIFF or .npy files
    # numbers in the files that become -1 and 1; left out: the whole range of 8 or 16 bits
    value_range: tuple[float, float] | None = None
    layout: Layout = "auto"  # of .npy files with three axes; auto: by the number of channels
    clip_norm: Positive[float] = 1.0  # gradients are scaled down to this norm
    loss: LossConfig = field(default_factory=LossConfig)
    discriminator_rate: Positive[float] = 1.0  # its learning rate, as a multiple of the other
    discriminator_width: Positive[int] = 64  # channels of its first layer
    discriminator_layers: int = 3  # 1, 2 or 3: it sees patches of 16, 34 or 70 pixels
    statistics_images: Positive[int] = 4096  # to measure mean and variance of the latents at last


# Each preset is an architecture of the same name (autoencoder/autoencoder.py) and a recipe for it.
OFFLINE = LossConfig(reconstruction="l2", perceptual="none", adversarial_weight=0.0)
PRESETS = {
    "tiny-32": {
        "size": 32,
        "steps": 600,  # after 300 of them a color may still be another: 20 to 28 dB, here 33 to 36
        "learning_rate": 3e-3,
        "ema_halflife": 192,
        "loss": OFFLINE,
    },
    "demo": {
        "size": 48,
        "steps": 1400,
        "batch_size": 8,  # at equal time 2 dB better than 16, on CPUs without bf16
        "learning_rate": 3e-3,
        "cooldown": 1.0,
        "ema_halflife": 224,
        "evaluate_every": 350,
        "save_every": 350,
        "loss": OFFLINE,
    },
    "small-64": {
        "steps": 5000,
        "batch_size": 8,
        "learning_rate": 3e-3,
        "cooldown": 1.0,
        "ema_halflife": 800,
        "evaluate_every": 1000,
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


def build(config: Config, device: torch.device) -> AutoencoderTraining:
    """Networks and losses, new or from `init_from`. Whatever is missing is reported here."""
    torch.manual_seed(derived_seed(config.seed, "weights"))
    if config.init_from is None:
        channels = {"in_channels": config.channels, "out_channels": config.channels}
        architecture = replace(ARCHITECTURES[config.preset], sample_size=config.size, **channels)
        autoencoder = Autoencoder(architecture)
    else:
        autoencoder = load_autoencoder(config.init_from, config.freeze == "encoder")
    check(config, autoencoder)
    shapes = shapes_up_to(config.max_aspect, config.size, autoencoder.factor)
    return prepare_training(
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
        precision=Precision(device, config.precision),
        parallel=distributed.data_parallel,
    )


def transform_of(config: Config, example: Source) -> ImageTransform:
    """example: one of the files, which all hold numbers of the same type; it is tried."""
    dtype, _ = kind_of(inspect_image(example)[1])
    pixels = choose_format(dtype, config.value_range, config.layout, example)
    transform = ImageTransform(config.size, config.channels, format=pixels)
    transform(example)
    return transform


def check(config: Config, autoencoder: Autoencoder) -> None:
    if config.freeze != "none" and config.init_from is None:
        raise UserError("--freeze encoder keeps one that is there; say which: --init-from MODEL.")
    factor, architecture = autoencoder.factor, autoencoder.config
    if config.size % factor:
        raise UserError(
            f"--size {config.size} is not a multiple of {factor}, by which this autoencoder "
            f"shrinks images. Use --size {max(1, config.size // factor) * factor}."
        )
    if {architecture.in_channels, architecture.out_channels} != {config.channels}:
        raise UserError(
            f"{config.init_from} has {architecture.in_channels} channels; "
            f"use --channels {architecture.in_channels}."
        )


class Stage:
    """What stage 1 does per step, at every look, and at the end."""

    def __init__(
        self,
        config: Config,
        run: Run,
        training: AutoencoderTraining,
        batches: ImageBatches,
        judged: Tensor,
    ):
        self.config, self.run, self.training = config, run, training
        self.batches, self.stream = batches, None
        self.device = training.autoencoder.decoder.conv_out.weight.device
        perceptual = training.loss.perceptual or perceptual_at_hand(config.size, self.device)
        self.held_out = HeldOut(judged, config.batch_size, self.device, perceptual)
        self.ema = EMA(training.autoencoder, config.ema_halflife_steps)
        scaler = training.precision.scaler()
        self.update = OptimizerStep(training.optimizers, config.clip_norm, scaler)
        self.averages = track_averages(
            run.path,
            training.autoencoder,
            every=config.averages_every,
            steps=config.steps,
            half=config.averages_half,
            evaluator="stages.autoencoder_averages",
        )
        self.contest = RunningMeans()
        self.parts = {**training.networks, "update": self.update, "ema": self.ema}
        self.parts["contest"] = self.contest
        if self.averages is not None:
            self.parts["power_averages"] = self.averages
        if self.device.type == "cuda":
            training.autoencoder.compile_for_training()

    def step(self, step: int) -> dict[str, Tensor]:
        config = self.config
        self.stream = self.stream or self.batches.stream(step)
        report_progress("reading images")
        images = to_model(next(self.stream)[0].to(self.device, non_blocking=True))
        shape = self.training.autoencoder.latent_shape(images)[1:]
        numbers = collectives.rank_share(step * config.batch_size, config.batch_size)
        each = generators(config.seed, "posterior", numbers)
        noise = torch.stack([torch.randn(shape, generator=random) for random in each])
        noise = noise.to(self.device, non_blocking=True)
        report_progress("computing gradients")
        metrics = self.training.backward(images, noise, step, config.accumulate, self.update.scale)
        report_progress("updating weights")
        metrics = collectives.mean_metrics(metrics)
        rate = config.rate(step)
        rates = {"optimizer": rate, "adversary": rate * config.discriminator_rate}
        metrics |= self.update(metrics, rates)
        self.ema.update(self.training.autoencoder, step, metrics["step_applied"])
        if self.averages is not None:
            self.averages.update(self.training.autoencoder, step)
        names = {"discriminator", "logits_real", "logits_fake"} & metrics.keys()
        self.contest.add({name: metrics[name] for name in names})
        return metrics

    def evaluate(self, step: int) -> dict[str, float | str]:
        """How well the averaged weights do on what was held out, and a picture of some of it."""
        seen = self.held_out.judge(self.ema.module)
        columns = 3 * min(4, len(self.held_out.pixels))
        if not collectives.rank():
            image_grid(seen.pictures[: 3 * SHOWN], columns).save(self.run.preview(step))
        words = {"verdict/channels": seen.channels.describe()}
        if contest := self.contest.pop():
            words["verdict/discriminator"] = (
                f"discriminator: {describe_gan_balance(*contest.values())}"
            )
        return {**seen.numbers, **words}

    def save(self) -> None:
        """Writes the model: the averaged weights."""
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
    """With latents of zero mean and unit variance over a sample of the training images.

    With a frozen encoder nothing is folded in, since its latents must not change.
    """
    device = autoencoder.decoder.conv_out.weight.device
    some = to_model(batches[0][0].to(device))
    facts = {"config": run.config, **facts, RECORD: batches.transforms[0].format.describe()}
    folder = folder or run.model
    if config.freeze == "encoder":
        if not collectives.rank():
            save_with_frozen_encoder(autoencoder, config.init_from, some, folder, facts)
        return
    count = min(config.statistics_images, batches.order.count)
    steps = range(max(1, count // config.batch_size))
    images = (to_model(batches[k][0].to(device)) for k in steps)
    statistics = measure_statistics(autoencoder, images)  # over the images of all ranks
    if collectives.rank():
        return
    autoencoder = fold_statistics(autoencoder, statistics)
    activation = largest_activation(
        autoencoder, lambda: autoencoder.decode(autoencoder.encode(some).mode())
    )
    facts |= {
        "latent_statistics_folded_in": asdict(statistics),
        "largest_activation": activation,  # over one batch, at any layer
        "fits_float16": fits_float16(activation),
    }
    autoencoder.save(folder, facts)
