"""What a training can try before it begins: batch sizes, and memorizing a few images.

These are the flags --find-batch-size and --overfit. Nothing that they train is kept.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from autoencoder import Autoencoder
from autoencoder.training.step import AutoencoderTraining
from conditioning.clip import Clip
from dataset.images.transform import ImageTransform, normalize_pixels
from dataset.latent_cache.cache import LatentCache
from dataset.loader import ImageBatches
from dataset.order import BucketOrder
from dataset.table import Pair
from ldm.unet import UNet
from stages.clip import ClipTrainer
from stages.condition import Condition
from stages.diffusion import DiffusionTrainer
from stages.flags.autoencoder import AutoencoderTrainingConfig
from stages.flags.clip import ClipTrainingConfig
from stages.flags.diffusion import DiffusionTrainingConfig
from stages.tasks.base import DRAWING, TrainingTask
from training.config import TrainingConfig
from training.device import pick_device
from training.optimizer import OptimizerStep
from training.precision import Precision
from training.run import Run
from training.tools.find_batch_size import Step, find_batch_size
from training.tools.overfit_check import Target, check_overfit

Config = TypeVar("Config", bound=TrainingConfig)


# Batch sizes: functions that return, for a batch size, a step as heavy as one of the training.


def autoencoder_trials(
    config: AutoencoderTrainingConfig, networks: AutoencoderTraining
) -> Callable[[int], Step]:
    """Try steps of stage 1 as at the end of the run, when the discriminator takes part."""
    device = networks.autoencoder.decoder.conv_out.weight.device
    scaler = Precision(device, config.precision).scaler()
    optimizer_step = OptimizerStep(networks.optimizers, config.clip_norm, scaler)
    last, rates = config.steps - 1, dict.fromkeys(networks.optimizers, config.rate(0))

    def prepare(batch_size: int) -> Step:
        images = normalize_pixels(
            random_pixels(batch_size, config.channels, config.size).to(device)
        )
        noise = torch.randn(networks.autoencoder.latent_shape(images), device=device)

        def step(k: int) -> None:
            metrics = networks.backward(images, noise, last, scale=optimizer_step.scale)
            optimizer_step(metrics, rates)

        return step

    return prepare


def diffusion_trials(
    config: DiffusionTrainingConfig,
    unet: UNet,
    vae: Autoencoder,
    condition: Condition,
    folder: Path,
    task: TrainingTask = DRAWING,
) -> Callable[[int], Step]:
    """Try steps of stage 2. folder: for run folders, which nobody needs afterwards."""

    def prepare(batch_size: int) -> Step:
        sized = replace(config, batch_size=batch_size, accumulate=1, averages_every=0)
        run = Run(folder / str(batch_size), sized)
        return trial_trainer(sized, run, unet, vae, condition, task).step

    return prepare


def trial_trainer(
    config: DiffusionTrainingConfig,
    run: Run,
    unet: UNet,
    vae: Autoencoder,
    condition: Condition,
    task: TrainingTask = DRAWING,
) -> DiffusionTrainer:
    """Return the trainer of stage 2 with a latent cache of zeros, as large as a batch.

    task: its pixels are those of the training.
    """
    count = torch.arange(config.batch_size + 1)
    shape = (2 * vae.config.latent_channels, *[config.size // vae.factor] * 2)
    contexts = None
    if condition.text_encoder is not None:
        (context,) = condition.example(1)
        contexts = torch.zeros(context.shape, dtype=torch.float16)
    cache = LatentCache(
        [torch.zeros(config.batch_size, *shape, dtype=torch.float16)],
        contexts,
        torch.zeros(config.batch_size, dtype=torch.uint8),
        count[:-1],
        count,
        torch.zeros(config.batch_size, dtype=torch.long),
    )
    order = BucketOrder(np.zeros(config.batch_size, int), config.batch_size, config.seed)
    return DiffusionTrainer(config, run, unet, vae, condition, cache, order, (), task)


def clip_trials(
    config: ClipTrainingConfig, clip: Clip, pairs: Sequence[Pair]
) -> Callable[[int], Step]:
    """Try steps of stage 0 with captions of the training."""

    def prepare(batch_size: int) -> Step:
        transform = ImageTransform(clip.size)
        batches = ImageBatches(pairs, transform, batch_size, config.seed, in_memory=0)
        trainer = ClipTrainer(replace(config, batch_size=batch_size), clip, batches)
        captions = [pair.captions[0] for pair in pairs[:batch_size]]
        trainer.stream = itertools.repeat((random_pixels(batch_size, 3, clip.size), captions))
        return trainer.step

    return prepare


def random_pixels(count: int, channels: int, size: int) -> Tensor:
    return torch.randint(256, (count, channels, size, size), dtype=torch.uint8)


def print_batch_sizes(
    config: TrainingConfig,
    prepare: Callable[[int], Step],
    memory: Callable[[int], int],
    most: int,
    first: int = 1,
) -> None:
    """Time steps of growing batches, and print the size to use.

    Args:
        prepare: returns a step for a batch size.
        memory: estimates the bytes that a step of a batch size needs.
        first, most: the smallest and the largest size to try.
    """
    result = find_batch_size(
        prepare, device=pick_device(config.device), needed=memory, first=first, most=most
    )
    print(result.describe(config.batch_size, config.divides_batches))


# Overfitting. The targets were measured with the presets tiny-32 and small-64 on OpenMoji;
# docs/instruments.md has the figures.

AUTOENCODER_TARGET = Target(
    metric="psnr",
    bound=30.0,
    above=True,
    words="PSNR in dB",
    steps=400,
    limits=(
        "Likely: a KL weight too high (--kl-weight; kl_per_element near 0 shows it), too few "
        "latent channels for these images, or images that are noise."
    ),
)
DIFFUSION_TARGET = Target(
    metric="val_loss_relative",
    bound=0.2,
    above=False,
    words="validation loss, as a fraction of the untrained baseline,",
    steps=600,
    limits=(
        "Likely: latents of another autoencoder, or of one that has not learned (see its "
        "previews); the same caption for all images; a U-Net too small for so many latents."
    ),
)
CLIP_TARGET = Target(
    metric="train_recall@1",
    bound=1.0,
    above=True,
    words="fraction of images that find their text",
    steps=100,
    limits="Likely: captions or images that are the same, or differ only after the last token.",
)


def train_or_overfit(config: Config, train: Callable[[Config], None]) -> None:
    """Train, or only on few images if `config.overfit` asks for that; see `overfit`."""
    if config.overfit:
        overfit(config, train)
    else:
        train(config)


def overfit(config: Config, train: Callable[[Config], None]) -> None:
    """Train on `config.overfit` images, and print whether they were memorized.

    train: the rest of the script; called with a config for these images.

    Raises:
        UserError: they were not learned; says what is likely wrong.
    """
    images = config.overfit
    target, loss, changes = overfit_recipe(config)
    short = replace(
        config,
        steps=target.steps,
        batch_size=images,
        warmup=target.steps // 20,
        held_out=0.0,
        log_every=max(target.steps // 40, 1),
        evaluate_every=target.steps,
        save_every=target.steps,
        wandb=None,
        **changes,
    )
    check_overfit(lambda folder: train(replace(short, out=folder)), target, loss, images)


def overfit_recipe(config: TrainingConfig) -> tuple[Target, str, dict[str, Any]]:
    """Return the target, the name of the training loss, and the fields that are changed.

    Averages are as short as the run, and there is no adversary, whose loss has no limit to reach.
    """
    if isinstance(config, AutoencoderTrainingConfig):
        target, loss = AUTOENCODER_TARGET, config.loss.reconstruction
        changes: dict[str, Any] = {"loss": replace(config.loss, adversarial_weight=0.0)}
    elif isinstance(config, DiffusionTrainingConfig):
        target, loss = DIFFUSION_TARGET, "loss"
        changes = {"caption_dropout": 0.0, "preview_prompts": ()}
    else:
        return CLIP_TARGET, "loss", {}
    halflife = max(target.steps * config.overfit // 50, 1)
    return target, loss, {"ema_halflife": halflife, "averages_every": 0, **changes}
