"""Training steps of the autoencoder with LPIPS and discriminator, ours and with diffusers' network.

The backbone of LPIPS has random weights here. That changes no time, but nothing could be learned.
"""

from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autoencoder import Autoencoder
from autoencoder.model import AutoencoderConfig
from autoencoder.training.config import LossConfig
from autoencoder.training.discriminator import Discriminator, DiscriminatorConfig, hinge_loss
from autoencoder.training.step import prepare_training
from benchmarks.gpu_parts.job import Job
from benchmarks.gpu_parts.stopwatch import count_tflop, fill_zeros, measure_step
from benchmarks.gpu_parts.tiny_trainers import SameBatch
from stages.autoencoder import AutoencoderTrainer
from stages.flags.autoencoder import AutoencoderTrainingConfig
from training.precision import Precision
from training.run import Run

# All terms have their full weight from the first step on.
WHOLE_LOSS = LossConfig(discriminator_start=0, adversarial_start=0, adversarial_ramp=0)
TINY = AutoencoderConfig(block_out_channels=(32, 32, 32, 32), layers_per_block=1)


def measure(job: Job, mode: str, name: str) -> None:
    """Measure steps; mode as in denoiser_speed."""
    config = TINY if job.rehearse else AutoencoderConfig()
    size = 64 if job.rehearse else 256
    sizes = (2, 1) if job.rehearse else (16, 8, 4, 2, 1)
    tflop = None
    with job.guarded(name):
        tflop = count_step(config, size)
        job.record(name, tflop_per_image=tflop)
    run = partial(measure_step, job, batch_sizes=sizes, tflop_per_image=tflop)
    if mode == "eager":
        with job.guarded(f"{name} diffusers"):
            run(f"{name} diffusers", partial(their_step, job, config, size))
        with job.guarded(f"{name} diffusers tuned"):
            run(f"{name} diffusers tuned", partial(their_step, job, config, size, tuned=True))
        with job.guarded(f"{name} ours"):
            run(f"{name} ours", partial(our_step, job, config, size))
    elif mode == "compiled":
        with job.guarded(f"{name} ours compiled"):
            run(f"{name} ours compiled", partial(our_step, job, config, size, compiled=True))
    else:
        title = f"{name} diffusers compiled"
        with job.guarded(title):
            run(title, partial(their_step, job, config, size, tuned=True, compiled=True))


def random_perceptual(device: str) -> Any:
    """Make LPIPS whose backbone has random weights, for which no file is needed."""
    from autoencoder.training.lpips import PerceptualDistance, build_lpips

    distance = object.__new__(PerceptualDistance)
    distance.lpips = build_lpips("vgg").to(device).eval().requires_grad_(False)
    return distance


def count_step(config: AutoencoderConfig, size: int) -> float:
    """Count the operations of a step per image, in 10^12.

    Counted as the terms of the loss need them: one pass forward and backward through each network,
    and the discriminator's own step. Upsampling counts as the convolution of the enlarged image.
    """
    with torch.device("meta"):
        autoencoder = Autoencoder(config).eval()  # in training it computes upsampling otherwise
        discriminator = Discriminator(DiscriminatorConfig())
        images = torch.randn(1, 3, size, size)
        noise = torch.randn(autoencoder.latent_shape(images))
    perceptual = random_perceptual("meta")

    def loss() -> Tensor:
        reconstructions, posterior = networks(autoencoder, images, noise)
        terms = [(images - reconstructions).abs().mean(), posterior.kl().mean()]
        with torch.no_grad():
            expected = perceptual.features(images)
        given = perceptual.features(reconstructions)
        layers = zip(perceptual.lpips.lins, given, expected, strict=True)
        terms += [layer((a - b).square()).mean() for layer, a, b in layers]
        terms += [discriminator(reconstructions).mean()]
        fake, real = discriminator(reconstructions.detach()), discriminator(images)
        return torch.stack([*terms, hinge_loss(real, fake)]).sum()

    return count_tflop(loss)


def networks(autoencoder: Autoencoder, images: Tensor, noise: Tensor) -> tuple[Tensor, Any]:
    """Encode and decode as `Autoencoder.forward`, without reading values, which meta has not."""
    posterior = autoencoder.encode(images, check=False)
    return autoencoder.decode(posterior.sample_with(noise), check=False), posterior


def our_step(
    job: Job, config: AutoencoderConfig, size: int, batch_size: int, compiled: bool = False
) -> Callable[[], object]:
    """Return our step as train_vae.py does it: noise, losses, both optimizers, and the EMA."""
    torch.manual_seed(0)
    device = torch.device(job.device)
    training = AutoencoderTrainingConfig(
        data=Path(),
        out=job.files / f"run-{batch_size}-{compiled}",
        preset="sd15",
        size=size,
        batch_size=batch_size,
        learning_rate=1e-5,
        loss=WHOLE_LOSS,
        compile=compiled,
    )
    networks = prepare_training(
        Autoencoder(config),
        training.loss,
        DiscriminatorConfig(),
        size=size,
        steps=training.steps,
        device=device,
        precision=Precision(device),
        pretrained=False,
    )
    fill_zeros(networks.autoencoder)
    pixels = torch.randint(256, (batch_size, 3, size, size), dtype=torch.uint8)
    batches = SameBatch(pixels, [""] * batch_size)
    trainer = AutoencoderTrainer(
        training, Run(training.out, training), networks, batches, pixels[:1]
    )
    number = count()
    return lambda: trainer.step(next(number))


def their_step(
    job: Job,
    config: AutoencoderConfig,
    size: int,
    batch_size: int,
    tuned: bool = False,
    compiled: bool = False,
) -> Callable[[], object]:
    """Return a step of diffusers' AutoencoderKL with the loss that latent diffusion introduced.

    Reconstruction, LPIPS, KL, and an adversarial term whose weight compares gradients at the
    decoder's last layer. LPIPS and discriminator are the same networks as in our step.
    tuned: channels-last and fused optimizers.
    """
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.training_utils import EMAModel

    torch.manual_seed(0)
    device = torch.device(job.device)
    precision = Precision(device)
    levels = len(config.block_out_channels)
    fields = {"down_block_types": ("DownEncoderBlock2D",) * levels}
    fields |= {"up_block_types": ("UpDecoderBlock2D",) * levels}
    with device:
        vae = AutoencoderKL(**fields, **asdict(config)).train()
        discriminator = Discriminator(DiscriminatorConfig())
        images = torch.rand(batch_size, 3, size, size) * 2 - 1
    fill_zeros(vae)
    if tuned:
        vae.to(memory_format=torch.channels_last)
        discriminator.to(memory_format=torch.channels_last)
        images = images.contiguous(memory_format=torch.channels_last)
    distance = random_perceptual(job.device)
    options: dict[str, Any] = {"lr": 1e-5, "fused": tuned}
    optimizer = torch.optim.AdamW(vae.parameters(), **options)
    adversary = torch.optim.AdamW(discriminator.parameters(), **options)
    average = EMAModel(vae.parameters(), foreach=tuned)
    average.to(device)
    if compiled:
        vae.encoder.compile(dynamic=False)
        vae.decoder.mid_block.compile(dynamic=False)
        for block in vae.decoder.up_blocks:
            block.compile(dynamic=False)
    last = vae.decoder.conv_out.weight

    def step() -> None:
        with precision:
            posterior = vae.encode(images).latent_dist
            pixels = vae.decode(posterior.sample()).sample.float()
        error = F.l1_loss(pixels, images) + distance(images, pixels).mean()
        with precision:
            adversarial = -discriminator(pixels).float().mean()
        norms = [
            torch.autograd.grad(term, last, retain_graph=True)[0].norm()
            for term in (error, adversarial)
        ]
        weight = (norms[0] / (norms[1] + 1e-4)).clamp(0, 1e4).detach()
        (error + 0.5 * weight * adversarial + 1e-6 * posterior.kl().mean()).backward()
        nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        discriminator.zero_grad(set_to_none=True)
        with precision:
            real, fake = discriminator(images).float(), discriminator(pixels.detach()).float()
        hinge_loss(real, fake).backward()
        nn.utils.clip_grad_norm_(discriminator.parameters(), 1.0)
        adversary.step()
        adversary.zero_grad(set_to_none=True)
        average.step(vae.parameters())

    return step
