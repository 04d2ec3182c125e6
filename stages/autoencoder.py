"""Stage 1: train an autoencoder on images."""

from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from autoencoder import PRESETS as ARCHITECTURES
from autoencoder import Autoencoder, AutoencoderConfig
from autoencoder.half_precision import fits_float16, largest_activation
from autoencoder.training.discriminator import DiscriminatorConfig, describe_gan_balance
from autoencoder.training.latent_statistics import fold_statistics, measure_statistics
from autoencoder.training.step import AutoencoderTraining, prepare_training
from dataset.buckets import bucket_shapes
from dataset.images.pixel_format import PIXELS_KEY, choose_format
from dataset.images.transform import ImageTransform, inspect_image, normalize_pixels, parse_mode
from dataset.loader import ImageBatches
from dataset.source import Source
from evaluation.latents import describe_channels
from foundation import collectives
from foundation.errors import UserError
from foundation.hashing import generators
from foundation.seeds import derived_seed
from stages.evaluation.reconstruction import ReconstructionEvaluator, find_perceptual_distance
from stages.finetune import load_autoencoder, save_with_frozen_encoder
from stages.flags.autoencoder import AutoencoderTrainingConfig
from training import distributed
from training.acceleration.captured import CapturedStep, Rate, is_recordable
from training.acceleration.compiled import compile_and_time
from training.acceleration.prefetch import PrefetchedBatches
from training.checkpoint import Stateful
from training.logging.image_grid import Cell, save_grid
from training.logging.metrics import RunningMeans
from training.optimizer import OptimizerStep
from training.precision import Precision
from training.run import Run
from training.watchdog import report_progress
from training.weights.best import Criterion
from training.weights.ema import EMA
from training.weights.muon import Muon
from training.weights.posthoc_ema import track_averages

BEST = Criterion(metric="psnr", words="held-out PSNR in dB", higher_is_better=True)
BEST_STATISTICS_IMAGES = 512  # as `statistics_images`, for best/, which is written more often
EVAL_IMAGES = 256  # held-out images that an evaluation measures, at most
PREVIEW_IMAGES = 16  # of these, in a preview
PREVIEW_PARTS = ("image", "reconstruction", "difference on gray")


def build_networks(config: AutoencoderTrainingConfig, device: torch.device) -> AutoencoderTraining:
    """Return autoencoder, discriminator and losses, with new weights or those of `init_from`.

    Raises:
        UserError: weights are missing, or do not go with the flags.
    """
    torch.manual_seed(derived_seed(config.seed, "weights"))
    if config.init_from is None:
        autoencoder = Autoencoder(choose_architecture(config))
    else:
        autoencoder = load_autoencoder(config.init_from, config.freeze == "encoder")
    check_autoencoder(config, autoencoder)
    shapes = bucket_shapes(config.max_aspect, config.size, autoencoder.factor)
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
        pretrained=not (config.dry_run or config.find_batch_size),
        matrix_optimizer=Muon if config.optimizer == "muon" else None,
    )


def describe_missing_backbone(config: AutoencoderTrainingConfig) -> str:
    """Return what the training will have to download; "" for nothing."""
    if config.loss.perceptual == "none":
        return ""
    from autoencoder.training.lpips import backbone_file  # imports lpips and torchvision

    file = backbone_file(config.loss.perceptual)
    if file.exists():
        return ""
    return f"note: LPIPS needs {file}, which the training downloads; it is not there yet."


def choose_architecture(config: AutoencoderTrainingConfig) -> AutoencoderConfig:
    """Return the architecture of the preset, with what other flags say of it."""
    architecture = ARCHITECTURES[config.preset]
    if config.factor is not None:
        architecture = architecture.with_factor(config.factor)
    return replace(
        architecture,
        in_channels=config.channels,
        out_channels=config.channels,
        latent_channels=config.latent_channels or architecture.latent_channels,
        sample_size=config.size,
    )


def check_autoencoder(config: AutoencoderTrainingConfig, autoencoder: Autoencoder) -> None:
    """Raise UserError if the flags do not go with the autoencoder."""
    if config.freeze != "none" and config.init_from is None:
        raise UserError("--freeze encoder keeps the encoder of --init-from MODEL; name a model.")
    factor, architecture = autoencoder.factor, autoencoder.config
    own = {"factor": factor, "latent_channels": architecture.latent_channels}
    for name, value in own.items():
        if getattr(config, name) not in (None, value):
            raise UserError(
                f"{config.init_from} has {name} {value}, and {name} {getattr(config, name)} is "
                f"asked for. Weights keep their shape: leave {name} out, or leave init_from out."
            )
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


def make_transform(config: AutoencoderTrainingConfig, example: Source) -> ImageTransform:
    """Return the transform of the training images, after trying it on one of them.

    example: any of the files; all hold numbers of the same type.
    """
    dtype, _ = parse_mode(inspect_image(example)[1])
    pixels = choose_format(dtype, config.value_range, config.layout, example)
    transform = ImageTransform(config.size, config.channels, format=pixels)
    transform(example)
    return transform


class AutoencoderTrainer:
    """Networks, optimizers and data of stage 1: one step, one evaluation, the model at the end."""

    def __init__(
        self,
        config: AutoencoderTrainingConfig,
        run: Run,
        networks: AutoencoderTraining,
        batches: ImageBatches,
        eval_images: Tensor,
    ):
        """eval_images: pixels of held-out images, as `read_pixels` returns them."""
        self.config, self.run, self.networks = config, run, networks
        self.autoencoder = networks.autoencoder
        self.batches = batches
        self.stream: Iterator[tuple[Tensor, list[str]]] | None = None
        self.device = self.autoencoder.decoder.conv_out.weight.device
        perceptual = networks.loss.perceptual or find_perceptual_distance(config.size, self.device)
        self.evaluator = ReconstructionEvaluator(
            eval_images, config.batch_size, self.device, perceptual
        )
        self.ema = EMA(self.autoencoder, config.ema_halflife_steps)
        precision = Precision(self.device, config.precision)
        is_captured = is_recordable(self.device, precision)
        self.optimizer_step = OptimizerStep(
            networks.optimizers, config.clip_norm, precision.scaler(), is_captured=is_captured
        )
        self.power_averages = track_averages(
            run.path,
            self.autoencoder,
            every=config.averages_every,
            steps=config.steps,
            half=config.averages_half,
        )
        self.gan_balance = RunningMeans()
        self.state: dict[str, Stateful] = {**networks.networks, "update": self.optimizer_step}
        self.state["ema"] = self.ema
        self.state["contest"] = self.gan_balance  # its name in states saved so far
        if self.power_averages is not None:
            self.state["power_averages"] = self.power_averages
        self.prefetched = PrefetchedBatches(self.read, self.device)
        self.update = self.train_on
        if is_captured:
            clear = self.optimizer_step.clear_gradients
            self.update = CapturedStep(self.train_on, clear, always=config.compile)
        if config.compile:
            compile_networks = self.autoencoder.compile_for_training
            compile_and_time(compile_networks, self.make_gradients(), self.device)

    def make_gradients(self) -> Callable[[], None]:
        """Return a function that computes the gradients of a step and throws them away."""
        batch = self.with_noise(next(self.batches.stream(0))[0], step=0)
        pixels, noise = (tensor.to(self.device) for tensor in batch)

        def gradients() -> None:
            self.networks.backward(normalize_pixels(pixels), noise, 0, self.config.accumulate)
            for network in self.networks.networks.values():
                network.zero_grad()

        return gradients

    def read(self, step: int) -> tuple[Tensor, Tensor]:
        """Read the pixels of a step, and draw noise for them. Steps follow each other."""
        self.stream = self.stream or self.batches.stream(step)
        return self.with_noise(next(self.stream)[0], step)

    def with_noise(self, pixels: Tensor, step: int) -> tuple[Tensor, Tensor]:
        return pixels, self.posterior_noise(pixels, step)

    def step(self, step: int) -> dict[str, Tensor]:
        """Do one optimizer step of autoencoder and discriminator; return its metrics."""
        report_progress("reading images")
        batch = self.prefetched(step)
        report_progress("computing gradients")
        loss = self.networks.loss
        metrics = self.update(
            self.config.rate(step),
            self.ema.rate(step),
            loss.adversarial_weight(step),
            *batch,
            phase=loss.phase(step),
        )
        if self.power_averages is not None:
            self.power_averages.update(self.autoencoder, step)
        names = {"discriminator", "logits_real", "logits_fake"} & metrics.keys()
        self.gan_balance.add({name: metrics[name] for name in names})
        return metrics

    def train_on(
        self,
        learning_rate: Rate,
        average_rate: Rate,
        adversarial_weight: Rate,
        pixels: Tensor,
        noise: Tensor,
        *,
        phase: int,
    ) -> dict[str, Tensor]:
        """Compute gradients, move weights and their average; return metrics.

        The host reads no value here, and so does not wait for a GPU.

        phase: a step at which the same terms of the loss are computed.
        """
        metrics = self.networks.backward(
            normalize_pixels(pixels),
            noise,
            phase,
            self.config.accumulate,
            self.optimizer_step.scale,
            adversarial_weight,
        )
        report_progress("updating weights")
        metrics = collectives.mean_metrics(metrics)
        rates = {
            "optimizer": learning_rate,
            "matrices": learning_rate * self.config.matrix_rate,
            "adversary": learning_rate * self.config.discriminator_rate,
        }
        metrics |= self.optimizer_step(metrics, rates)
        self.ema.move(self.autoencoder, average_rate, metrics["step_applied"])
        return metrics

    def posterior_noise(self, images: Tensor, step: int) -> Tensor:
        """Return the noise of the posterior: of each image its own, on the CPU."""
        config = self.config
        shape = self.autoencoder.latent_shape(images)[1:]
        numbers = collectives.rank_share(step * config.batch_size, config.batch_size)
        each = generators(config.seed, "posterior", numbers)
        return torch.stack([torch.randn(shape, generator=random) for random in each])

    def evaluate(self, step: int) -> dict[str, float | str]:
        """Measure the averaged weights on held-out images, and write a preview of some."""
        evaluation = self.evaluator.evaluate(self.ema.module)
        columns = 3 * min(4, len(self.evaluator.pixels))
        if not collectives.rank():
            shown = evaluation.comparison[: 3 * PREVIEW_IMAGES]
            cells = [Cell(str(k // 3 + 1), PREVIEW_PARTS[k % 3]) for k in range(len(shown))]
            save_grid(shown, columns, self.run.preview(step), cells)
        verdicts = {"verdict/channels": describe_channels(evaluation.channels)}
        if means := self.gan_balance.pop():
            balance = describe_gan_balance(*means.values())
            verdicts["verdict/discriminator"] = f"discriminator: {balance}"
        return {**evaluation.metrics, **verdicts}

    def save(self, folder: Path, facts: dict[str, Any], statistics_images: int) -> None:
        """Write a model: the averaged weights.

        Args:
            facts: further ones, for its provenance.
            statistics_images: on how many images the latents are measured.
        """
        provenance = {"weights": "averaged over the last steps (EMA)", **facts}
        config = replace(self.config, statistics_images=statistics_images)
        write_model(self.run, config, self.ema.module, self.batches, provenance, folder)


def write_model(
    run: Run,
    config: AutoencoderTrainingConfig,
    autoencoder: Autoencoder,
    batches: ImageBatches,
    provenance: dict[str, Any],
    folder: Path | None = None,
) -> None:
    """Write an autoencoder whose latents have zero mean and unit variance, on rank 0.

    Mean and variance are measured on a sample of the training images, by all ranks. With a frozen
    encoder the latents must not change, so nothing is folded in.

    folder: the run's `model` if None.
    """
    device = autoencoder.decoder.conv_out.weight.device
    images = normalize_pixels(batches[0][0].to(device))
    provenance = {"config": run.config, **provenance}
    provenance[PIXELS_KEY] = batches.transforms[0].format.describe()
    folder = folder or run.model
    if config.freeze == "encoder" and config.init_from is not None:
        if not collectives.rank():
            save_with_frozen_encoder(autoencoder, config.init_from, images, folder, provenance)
        return
    count = min(config.statistics_images, batches.order.count)
    steps = range(max(1, count // config.batch_size))
    sample = (normalize_pixels(batches[k][0].to(device)) for k in steps)
    statistics = measure_statistics(autoencoder, sample)
    if collectives.rank():
        return
    autoencoder = fold_statistics(autoencoder, statistics)
    activation = largest_activation(
        autoencoder, lambda: autoencoder.decode(autoencoder.encode(images).mode())
    )
    provenance |= {
        "latent_statistics_folded_in": asdict(statistics),
        "largest_activation": activation,  # over one batch, at any layer
        "fits_float16": fits_float16(activation),
    }
    autoencoder.save(folder, provenance)
