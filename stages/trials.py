"""Steps on made-up batches of any size, for --find-batch-size: as heavy as those of a training."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from autoencoder import Autoencoder
from autoencoder.training.step import AutoencoderTraining
from conditioning import TextEncoder
from conditioning.clip import Clip
from dataset.images.transform import ImageTransform, to_model
from dataset.latent_cache.cache import LatentCache
from dataset.loader import ImageBatches
from dataset.order import BucketOrder
from dataset.table import Pair
from ldm.unet import UNet
from stages import autoencoder as vae_stage
from stages import clip as clip_stage
from stages import diffusion as ldm_stage
from stages.diffusion_config import Config
from training.cli import pick_device
from training.config import TrainingConfig
from training.optimizer import OptimizerStep
from training.run import Run
from training.tools.find_batch_size import Step, find_batch_size
from training.tools.memory_estimate import MemoryEstimate


def pixels(count: int, channels: int, size: int) -> Tensor:
    return torch.randint(256, (count, channels, size, size), dtype=torch.uint8)


def vae_trials(config: vae_stage.Config, training: AutoencoderTraining) -> Callable[[int], Step]:
    """Steps of the end of the run, when the discriminator takes part."""
    device = training.autoencoder.decoder.conv_out.weight.device
    update = OptimizerStep(training.optimizers, config.clip_norm, training.precision.scaler())
    last, rates = config.steps - 1, dict.fromkeys(training.optimizers, config.rate(0))

    def prepare(batch_size: int) -> Step:
        images = to_model(pixels(batch_size, config.channels, config.size).to(device))
        noise = torch.randn(training.autoencoder.latent_shape(images), device=device)
        return lambda k: update(training.backward(images, noise, last, scale=update.scale), rates)

    return prepare


def ldm_trials(
    config: Config, unet: UNet, vae: Autoencoder, encoder: TextEncoder, folder: Path
) -> Callable[[int], Step]:
    """folder: for a run folder that nobody needs afterwards."""
    shape = (2 * vae.config.latent_channels, *[config.size // vae.factor] * 2)
    tokens = config.text_chunks * encoder.tokens

    def prepare(batch_size: int) -> Step:
        count = torch.arange(batch_size + 1)
        cache = LatentCache(
            [torch.zeros(batch_size, *shape, dtype=torch.float16)],
            torch.zeros(1, tokens, encoder.width, dtype=torch.float16),
            torch.zeros(batch_size, dtype=torch.uint8),
            count[:-1],
            count,
            torch.zeros(batch_size, dtype=torch.long),
        )
        sized = replace(config, batch_size=batch_size, averages_every=0)
        run = Run(folder / str(batch_size), sized)
        order = BucketOrder(np.zeros(batch_size, int), batch_size, config.seed)
        stage = ldm_stage.Stage(sized, run, unet, vae, encoder, cache, order, ())
        return stage.step

    return prepare


def clip_trials(
    config: clip_stage.Config, clip: Clip, pairs: Sequence[Pair]
) -> Callable[[int], Step]:
    def prepare(batch_size: int) -> Step:
        batches = ImageBatches(
            pairs, ImageTransform(clip.size), batch_size, config.seed, in_memory=0
        )
        stage = clip_stage.Stage(replace(config, batch_size=batch_size), clip, batches)
        captions = [pair.captions[0] for pair in pairs[:batch_size]]
        stage.stream = itertools.repeat((pixels(batch_size, 3, clip.size), captions))
        return stage.step

    return prepare


def tell_batch_size(
    config: TrainingConfig,
    prepare: Callable[[int], Step],
    memory: MemoryEstimate,
    most: int,
    first: int = 1,
) -> None:
    """Prints what each size does and which to take. Nothing is trained or written."""
    found = find_batch_size(
        prepare,
        device=pick_device(config.device),
        needed=lambda size: replace(memory, batch_size=size).total,
        first=first,
        most=most,
    )
    print(found.describe(config.batch_size))
