"""Training steps of U-Nets: ours as train_ldm.py does them, and those of diffusers' own script."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from autoencoder import Autoencoder
from autoencoder.model import AutoencoderConfig
from benchmarks.gpu_parts.job import Job
from benchmarks.gpu_parts.stopwatch import count_tflop, fill_zeros, measure_step, run_once
from conditioning import TextEncoder
from dataset.latent_cache.cache import LatentCache
from dataset.order import BucketOrder
from ldm.config import ObjectiveConfig
from ldm.unet import PRESETS, UNet, UNetConfig
from stages.condition import TextCondition
from stages.diffusion import DiffusionTrainer
from stages.flags.diffusion import DiffusionTrainingConfig
from training.precision import Precision
from training.run import Run

FACTOR = 8  # pixels per latent
TINY = replace(PRESETS["tiny-32"], cross_attention_dim=32)


@dataclass(frozen=True)
class Workload:
    """A network, and the batches to train it with: the first that fits counts."""

    unet: UNetConfig
    size: int  # of the images
    batch_sizes: tuple[int, ...]
    tokens: int = 77


WORKLOADS = {
    "unet-512": Workload(PRESETS["sd15"], 512, (32, 16, 8, 4, 2, 1)),
    "unet-256": Workload(PRESETS["sd15"], 256, (64, 32, 16, 8, 4, 2, 1)),
    "base-256": Workload(PRESETS["base-256"], 256, (128, 64, 32, 16, 8, 4, 2, 1)),
}


def measure(job: Job, mode: str, name: str) -> None:
    """Measure a workload.

    mode: "eager" for ours and both of diffusers, "compiled" for ours, "peer-compiled" for theirs,
        "compiling" to do one step of "compiled", after which its code is on the disk.
    """
    work = WORKLOADS[name]
    if job.rehearse:
        work = replace(work, unet=TINY, size=64, batch_sizes=(2, 1), tokens=8)
    tflop = None
    with job.guarded(name):
        tflop = count_step(work)
        job.record(name, tflop_per_image=tflop, weights=count_weights(work.unet))
    if mode == "compiling":
        compiled_step = partial(our_step, job, work, compiled=True)
        return run_once(job, f"{name} compiling", compiled_step, work.batch_sizes[0])
    run = partial(measure_step, job, batch_sizes=work.batch_sizes, tflop_per_image=tflop)
    if mode == "eager":
        with job.guarded(f"{name} diffusers"):
            run(f"{name} diffusers", partial(their_step, job, work))
        with job.guarded(f"{name} diffusers tuned"):
            run(f"{name} diffusers tuned", partial(their_step, job, work, tuned=True))
        with job.guarded(f"{name} ours"):
            run(f"{name} ours", partial(our_step, job, work))
    elif mode == "compiled":
        with job.guarded(f"{name} ours compiled"):
            run(f"{name} ours compiled", partial(our_step, job, work, compiled=True))
    else:
        title = f"{name} diffusers compiled"
        with job.guarded(title):
            run(title, partial(their_step, job, work, tuned=True, compiled=True))


def count_weights(config: UNetConfig) -> int:
    with torch.device("meta"):
        return sum(weight.numel() for weight in UNet(config).parameters())


def count_step(work: Workload) -> float:
    """Count the operations of a step per image, in 10^12."""
    side = work.size // FACTOR
    with torch.device("meta"):
        unet = UNet(work.unet)
        latents, t = torch.randn(1, 4, side, side), torch.zeros(1, dtype=torch.long)
        context = torch.randn(1, work.tokens, unet.config.cross_attention_dim or 1)
    return count_tflop(lambda: unet(latents, t, context).square().mean())


class WidthOnly(TextEncoder):
    """In place of a text encoder, which neither a training step nor a sampler runs."""

    width = 0

    def __init__(self, width: int):
        nn.Module.__init__(self)
        self.width = width


def our_step(
    job: Job, work: Workload, batch_size: int, compiled: bool = False
) -> Callable[[], object]:
    """Return our step, with reading the latent cache, noise, clipping, AdamW and the EMA."""
    trainer = our_trainer(job, work, batch_size, compiled)
    number = iter(range(10**9))
    return lambda: trainer.step(next(number))


def our_trainer(
    job: Job, work: Workload, batch_size: int, compiled: bool = False
) -> DiffusionTrainer:
    """Return the trainer of train_ldm.py, with a cache of random latents."""
    torch.manual_seed(0)
    width, side = work.unet.cross_attention_dim or 1, work.size // FACTOR
    folder = job.files / f"run-{batch_size}-{compiled}"
    config = DiffusionTrainingConfig(
        data=Path(),
        out=folder,
        vae=Path(),
        text_encoder="",
        preset="sd15",
        size=work.size,
        batch_size=batch_size,
        learning_rate=1e-4,
        text_chunks=1,
        objective=ObjectiveConfig(prediction="noise"),
        compile=compiled,
    )
    count = torch.arange(batch_size + 1)
    cache = LatentCache(
        [torch.randn(batch_size, 8, side, side).half()],
        torch.randn(batch_size, work.tokens, width).half(),
        torch.zeros(batch_size, dtype=torch.uint8),
        count[:-1],
        count,
        count[:-1],
    )
    with torch.device(job.device):
        unet = UNet(work.unet)
        vae = Autoencoder(AutoencoderConfig(block_out_channels=(32,) * 4, layers_per_block=1))
    fill_zeros(unet)
    order = BucketOrder(np.zeros(batch_size, int), batch_size, 0)
    run = Run(folder, config)
    condition = TextCondition(WidthOnly(width))
    return DiffusionTrainer(config, run, unet, vae, condition, cache, order, ())


def their_unet(config: UNetConfig) -> Any:
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    return UNet2DConditionModel(**asdict(config))


def their_step(
    job: Job, work: Workload, batch_size: int, tuned: bool = False, compiled: bool = False
) -> Callable[[], object]:
    """Return a step as in diffusers' train_text_to_image.py with bf16 and EMA, on cached latents.

    tuned: with what its documentation recommends: channels-last, fused AdamW and EMA.
    """
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
    from diffusers.training_utils import EMAModel

    torch.manual_seed(0)
    device, side = torch.device(job.device), work.size // FACTOR
    with device:
        unet = their_unet(work.unet).train()
        latents = torch.randn(batch_size, 4, side, side)
        context = torch.randn(batch_size, work.tokens, unet.config.cross_attention_dim)
    fill_zeros(unet)
    if tuned:
        unet.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(unet.parameters(), lr=1e-4, weight_decay=1e-2, fused=tuned)
    average = EMAModel(unet.parameters(), foreach=tuned)
    average.to(device)
    scheduler = DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", num_train_timesteps=1000
    )
    precision = Precision(device)
    if compiled:
        unet.compile(dynamic=False)

    def step() -> None:
        noise = torch.randn_like(latents)
        t = torch.randint(0, 1000, (batch_size,), device=device)
        noisy = scheduler.add_noise(latents, noise, t)
        with precision:
            output = unet(noisy, t, context).sample
        loss = F.mse_loss(output.float(), noise)
        loss.backward()
        nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        average.step(unet.parameters())
        if not tuned:
            loss.item()  # the script shows the loss of every step

    return step
