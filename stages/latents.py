"""What stage 2 is bound to, and the latents and contexts that it trains on."""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from autoencoder import Autoencoder
from autoencoder.io import read_provenance
from conditioning import TextEncoder
from conditioning.prompt_weighting import encode_chunks
from dataset.buckets import Buckets
from dataset.images.pixel_format import recorded_format
from dataset.images.transform import ImageTransform, to_model
from dataset.index import verify_images
from dataset.latent_cache.build import Process, build_cache
from dataset.latent_cache.cache import LatentCache, verify_cache
from dataset.table import Pairs
from foundation import collectives
from stages.diffusion_config import Config
from training.logging.progress import progress_bar
from training.run import Run
from training.watchdog import report_progress


def hashes(config: Config, vae: Autoencoder, encoder: TextEncoder) -> dict[str, Any]:
    """What the U-Net is bound to from its first step on: paths may come to hold other weights."""
    statistics = *(vae.config.latents_mean or ()), *(vae.config.latents_std or ())
    return {
        "vae_sha256": vae.sha256,
        "vae_scaling": [vae.config.scaling_factor, vae.config.shift_factor, *statistics],
        "text_encoder_sha256": encoder.sha256,
    }


def cached(
    config: Config,
    run: Run,
    parts: dict[str, Any],
    pairs: Pairs,
    buckets: Buckets,
    vae: Autoencoder,
    encoder: TextEncoder,
) -> LatentCache:
    """Latents and contexts of all pairs, made on the first start, by all ranks, and reused."""
    pixels = recorded_format(read_provenance(config.vae))
    transform = ImageTransform(config.size, vae.config.in_channels, format=pixels)
    identity = {**parts, "transform": transform.describe(), "encoded_in": "float32"}
    identity |= {"shapes": buckets.shapes, "text_chunks": config.text_chunks}
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
        posterior = vae.encode(to_model(pixels.to(device)), check=False)
        return torch.cat([posterior.mean, posterior.logvar], dim=1)

    return build_cache(
        pairs,
        transform,
        encode_images,
        partial(encode_chunks, encoder, chunks=config.text_chunks),
        folder,
        identity,
        buckets=buckets,
        process=Process(collectives.rank(), collectives.world_size(), collectives.barrier),
        progress=progress_bar,
    )
