"""What a training can do before it begins: estimate memory, time batch sizes, overfit.

These are the flags --dry-run, --find-batch-size and --overfit. Nothing that they train is kept.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from autoencoder import Autoencoder
from autoencoder.training.step import AutoencoderTraining
from conditioning import TextEncoder
from conditioning.clip import Clip
from dataset.images.transform import ImageTransform, normalize_pixels
from dataset.latent_cache.cache import LatentCache
from dataset.loader import ImageBatches
from dataset.order import BucketOrder
from dataset.table import Pair
from ldm.unet import UNet
from stages.autoencoder import AutoencoderTrainingConfig
from stages.clip import ClipTrainer, ClipTrainingConfig
from stages.diffusion import DiffusionTrainer, DiffusionTrainingConfig
from training.cli import pick_device
from training.config import EMATrainingConfig, TrainingConfig
from training.memory import format_bytes
from training.optimizer import OptimizerStep
from training.posthoc_ema import SIGMA_RELS, bytes_per_file
from training.precision import Precision
from training.run import Run
from training.tools.find_batch_size import Step, find_batch_size
from training.tools.memory_estimate import MemoryEstimate, estimate_memory
from training.tools.overfit_check import Target, check_overfit

Config = TypeVar("Config", bound=TrainingConfig)


# Memory.


def autoencoder_memory(
    config: AutoencoderTrainingConfig, networks: AutoencoderTraining
) -> MemoryEstimate:
    """Estimate the memory of a step of stage 1.

    It is a little high: what autoencoder, discriminator and LPIPS save is counted together, though
    not all of it is alive at once.
    """
    autoencoder, discriminator = networks.autoencoder, networks.discriminator
    perceptual = networks.loss.perceptual
    device = autoencoder.decoder.conv_out.weight.device

    frozen: list[nn.Module] = []
    if perceptual is not None:
        from autoencoder.training.lpips import PerceptualDistance  # imports lpips and torchvision

        assert isinstance(perceptual, PerceptualDistance)
        frozen.append(perceptual.lpips)

    def forward(count: int) -> list[Tensor]:
        images = torch.empty(count, config.channels, config.size, config.size, device=device)
        noise = torch.empty(autoencoder.latent_shape(images), device=device)
        with Precision(device, config.precision):
            reconstructed, posterior = autoencoder(images, noise)
            results = [] if discriminator is None else [discriminator(reconstructed)]
        results += [] if perceptual is None else [perceptual(images, reconstructed)]
        return [(images - reconstructed).square().mean(), posterior.kl(), *results]

    return estimate_memory(
        [autoencoder] if discriminator is None else [autoencoder, discriminator],
        frozen,
        forward,
        batch_size=config.images_at_once,
        averaged=average_bytes(config, autoencoder),
    )


def diffusion_memory(
    config: DiffusionTrainingConfig, unet: UNet, vae: Autoencoder, text_encoder: TextEncoder
) -> MemoryEstimate:
    """Estimate the memory of a step of stage 2. The encoders stay in memory, to draw previews."""
    device, side = unet.conv_in.weight.device, config.size // vae.factor
    tokens = config.chunks * text_encoder.tokens

    def forward(count: int) -> Tensor:
        latents = torch.empty(count, vae.config.latent_channels, side, side, device=device)
        context = torch.empty(count, tokens, text_encoder.width, device=device)
        with Precision(device, config.precision):
            output = unet(latents, torch.zeros(count, dtype=torch.long, device=device), context)
        return (output.float() - latents).square().mean()

    return estimate_memory(
        [unet],
        [vae, text_encoder],
        forward,
        batch_size=config.images_at_once,
        averaged=average_bytes(config, unet),
    )


def clip_memory(config: ClipTrainingConfig, clip: Clip) -> MemoryEstimate:
    """Estimate the memory of a step of stage 0 if every caption is as long as possible."""
    device = clip.network.logit_scale.device

    def forward(count: int) -> list[Tensor]:
        images = torch.empty(count, 3, clip.size, clip.size, device=device).to(torch.uint8)
        ids = torch.empty(count, clip.tokenizer.context_length, device=device).long()
        with Precision(device, config.precision):
            return [clip.image_features(images), clip.pool_text(ids)]

    return estimate_memory([clip], [], forward, batch_size=config.images_at_once, averaged=0)


def average_bytes(config: EMATrainingConfig, module: nn.Module) -> int:
    """Return the bytes of the EMA, and of the power-function averages if they are stored."""
    copies = 1 + (len(SIGMA_RELS) if config.averages_every else 0)
    return 4 * copies * sum(weight.numel() for weight in module.parameters())


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
    text_encoder: TextEncoder,
    folder: Path,
) -> Callable[[int], Step]:
    """Try steps of stage 2. folder: for run folders, which nobody needs afterwards."""
    shape = (2 * vae.config.latent_channels, *[config.size // vae.factor] * 2)
    tokens = config.chunks * text_encoder.tokens

    def prepare(batch_size: int) -> Step:
        count = torch.arange(batch_size + 1)
        cache = LatentCache(
            [torch.zeros(batch_size, *shape, dtype=torch.float16)],
            torch.zeros(1, tokens, text_encoder.width, dtype=torch.float16),
            torch.zeros(batch_size, dtype=torch.uint8),
            count[:-1],
            count,
            torch.zeros(batch_size, dtype=torch.long),
        )
        sized = replace(config, batch_size=batch_size, averages_every=0)
        run = Run(folder / str(batch_size), sized)
        order = BucketOrder(np.zeros(batch_size, int), batch_size, config.seed)
        return DiffusionTrainer(sized, run, unet, vae, text_encoder, cache, order, ()).step

    return prepare


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
    memory: MemoryEstimate,
    most: int,
    first: int = 1,
) -> None:
    """Time steps of growing batches, and print the size to use.

    Args:
        prepare: returns a step for a batch size.
        memory: estimate at any batch size.
        first, most: the smallest and the largest size to try.
    """
    result = find_batch_size(
        prepare,
        device=pick_device(config.device),
        needed=lambda size: replace(memory, batch_size=size).total,
        first=first,
        most=most,
    )
    print(result.describe(config.batch_size))


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
    words="validation loss, as a fraction of the loss of a network that outputs zero,",
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


def overfit(config: Config, train: Callable[[Config], None]) -> None:
    """Train on `config.overfit` images, and print whether they were learned by heart.

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
