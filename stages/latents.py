"""The cache of latents and text contexts that stage 2 trains on, in its run folder."""

from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from autoencoder import Autoencoder
from autoencoder.io import read_provenance
from dataset.buckets import Buckets
from dataset.captions.choice import caption_draws
from dataset.images.pixel_format import recorded_format
from dataset.images.transform import ImageTransform, normalize_pixels
from dataset.index import verify_images
from dataset.latent_cache.build import build_cache
from dataset.latent_cache.cache import LatentCache, verify_cache
from dataset.loader import PixelStore
from dataset.parallel import WorkShare
from dataset.table import PairList
from foundation import collectives
from stages.condition import Condition
from stages.flags.diffusion import DiffusionTrainingConfig
from stages.tasks.base import TrainingTask
from training.logging.progress import progress_bar
from training.run import Run
from training.watchdog import report_progress

FLOAT16_BYTES = 2


def encoder_hashes(vae: Autoencoder, condition: Condition) -> dict[str, Any]:
    """Return what identifies encoders and classes, so that a run resumes with the same.

    The paths of encoders do not: they may come to hold other weights.
    """
    statistics = *(vae.config.latents_mean or ()), *(vae.config.latents_std or ())
    return {
        "vae_sha256": vae.sha256,
        "vae_scaling": [vae.config.scaling_factor, vae.config.shift_factor, *statistics],
        **condition.describe(),
    }


def cache_bytes(
    config: DiffusionTrainingConfig, pairs: PairList, vae: Autoencoder, condition: Condition
) -> int:
    """Return the size of the cache of these pairs if no two images and captions are equal."""
    moments = 2 * vae.config.latent_channels * (config.size // vae.factor) ** 2
    if condition.text_encoder is None:
        return FLOAT16_BYTES * moments * len(pairs)
    (example,) = condition.example(1)
    context = example.numel()
    texts = 1 + len(caption_draws(pairs, config.variants(), len(pairs)).texts)
    return FLOAT16_BYTES * (moments * len(pairs) + context * texts)


def image_transform(config: DiffusionTrainingConfig, vae: Autoencoder) -> ImageTransform:
    """Return how image files become the pixels that the autoencoder encodes."""
    pixels = recorded_format(read_provenance(config.vae))
    return ImageTransform(config.size, vae.config.in_channels, format=pixels)


def open_pixels(
    task: TrainingTask,
    config: DiffusionTrainingConfig,
    vae: Autoencoder,
    pairs: PairList,
    buckets: Buckets,
) -> None:
    """Give a task the pixels of the images that its inputs are made from, if it has any."""
    if task.channels:
        report_progress("reading images")
        transform = image_transform(config, vae)
        task.pixels = PixelStore(pairs, transform, buckets, progress=progress_bar)


def open_latent_cache(
    config: DiffusionTrainingConfig,
    run: Run,
    pairs: PairList,
    trained: int,
    buckets: Buckets,
    vae: Autoencoder,
    condition: Condition,
    identity: dict[str, Any],
) -> LatentCache:
    """Open the run's cache of latents and contexts; on the first start all ranks build it.

    Args:
        pairs: the training pairs, then the held-out ones.
        trained: how many of them are trained on, and so have variants of their captions.
        identity: the encoders' hashes and what else the cache depends on.

    Raises:
        UserError: the folder holds a cache of something else.
    """
    transform = image_transform(config, vae)
    identity = {**identity, "transform": transform.describe(), "encoded_in": "float32"}
    identity |= {"shapes": buckets.shapes, "text_chunks": config.text_chunks}
    variants = config.variants()
    if variants is not None:
        identity["tag_variants"] = variants.describe() | {"pairs": trained}
    if (choice := config.caption_choice()).is_any:
        identity["captions"] = asdict(choice)
    folder = run.path / "cache"
    report_progress("building the latent cache")
    if folder.exists():
        if config.verify_cache and not collectives.rank():
            verify_cache(folder, progress_bar)
            verify_images(pairs, progress_bar)
        return LatentCache.open(folder, identity, pairs)
    device = next(vae.parameters()).device

    @torch.no_grad()
    def encode_images(pixels: Tensor) -> Tensor:
        posterior = vae.encode(normalize_pixels(pixels.to(device)), check=False)
        return torch.cat([posterior.mean, posterior.logvar], dim=1)

    return build_cache(
        pairs,
        transform,
        encode_images,
        condition.encode,
        folder,
        identity,
        buckets=buckets,
        draws=caption_draws(pairs, variants, trained),
        process=WorkShare(collectives.rank(), collectives.world_size(), collectives.barrier),
        progress=progress_bar,
    )
