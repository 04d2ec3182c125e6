"""The trainers of the three stages with tiny networks, on a batch of their own."""

from collections.abc import Iterator
from itertools import repeat
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from autoencoder import PRESETS as AUTOENCODERS
from autoencoder import Autoencoder
from autoencoder.training.config import LossConfig
from autoencoder.training.discriminator import DiscriminatorConfig
from autoencoder.training.step import prepare_training
from benchmarks.gpu_parts.denoiser_speed import TINY, Workload, our_trainer
from benchmarks.gpu_parts.job import Job
from dataset.loader import ImageBatches
from stages.autoencoder import AutoencoderTrainer
from stages.clip import ClipTrainer, build_clip
from stages.diffusion import DiffusionTrainer
from stages.flags.autoencoder import AutoencoderTrainingConfig
from stages.flags.clip import ClipTrainingConfig
from training.precision import Precision
from training.run import Run

CAPTIONS = ["a red square", "blue", "a green square on white", "black"]
Trainer = ClipTrainer | AutoencoderTrainer | DiffusionTrainer
LOSSES = {"clip": "loss", "vae": "l1", "ldm": "loss"}  # the metric of each stage to compare
# The discriminator begins to learn at step 6 and is listened to from step 12 on.
LOSS = LossConfig(
    perceptual="squeeze", discriminator_start=6, adversarial_start=12, adversarial_ramp=6
)


class SameBatch(ImageBatches):
    """In place of batches of files."""

    def __init__(self, images: Tensor, captions: list[str]):
        self.batch = images, captions

    def stream(self, first_step: int = 0) -> Iterator[tuple[Tensor, list[str]]]:
        return repeat(self.batch)


def tiny_trainer(
    job: Job, stage: str, compiled: bool = False, loss: LossConfig = LOSS, accumulate: int = 1
) -> Trainer:
    """Return the trainer of a stage, as train_clip.py, train_vae.py or train_ldm.py makes it.

    LPIPS has random weights.

    Args:
        stage: "clip", "vae" or "ldm".
        loss, accumulate: of the autoencoder.
    """
    torch.manual_seed(0)
    if stage == "ldm":
        return our_trainer(job, Workload(TINY, 64, (4,), tokens=8), 4, compiled)
    device = torch.device(job.device)
    pixels = torch.randint(256, (len(CAPTIONS), 3, 32, 32), dtype=torch.uint8)
    batches = SameBatch(pixels, CAPTIONS)
    shared: dict[str, Any] = {"data": Path(), "out": job.files / f"{stage}-{compiled}"}
    shared |= {"preset": "tiny-32", "batch_size": len(CAPTIONS), "compile": compiled}
    shared |= {"steps": 100, "warmup": 1, "learning_rate": 1e-4}
    if stage == "clip":
        config = ClipTrainingConfig(**shared)
        return ClipTrainer(config, build_clip(config).to(device), batches)
    config = AutoencoderTrainingConfig(**shared, loss=loss, accumulate=accumulate, size=32)
    networks = prepare_training(
        Autoencoder(AUTOENCODERS["tiny-32"]),
        loss,
        DiscriminatorConfig(width=16, layers=1),
        size=config.size,
        steps=config.steps,
        device=device,
        precision=Precision(device),
        pretrained=False,
    )
    return AutoencoderTrainer(config, Run(config.out, config), networks, batches, pixels)
