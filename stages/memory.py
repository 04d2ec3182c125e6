"""What a step of each stage computes and keeps, to estimate its memory before the training."""

import copy
from typing import cast

import torch
from torch import Tensor, nn

from autoencoder import Autoencoder
from autoencoder.training.discriminator import Discriminator
from autoencoder.training.loss import AutoencoderLoss
from autoencoder.training.step import AutoencoderTraining
from conditioning.clip import Clip
from conditioning.clip_loss import contrastive_loss
from ldm.denoiser import Denoiser
from ldm.loss import denoising_loss
from ldm.schedule import make_schedule
from ldm.unet import UNet
from stages.condition import Condition
from stages.flags.autoencoder import AutoencoderTrainingConfig
from stages.flags.clip import ClipTrainingConfig
from stages.flags.diffusion import DiffusionTrainingConfig
from stages.tasks.base import DRAWING, TrainingTask
from training.config import EMATrainingConfig
from training.tools.memory_estimate import MOST_PARTS, Context, StepWork
from training.weights.posthoc_ema import SIGMA_RELS


def autoencoder_work(config: AutoencoderTrainingConfig, networks: AutoencoderTraining) -> StepWork:
    """Return the work of a step of stage 1 at the end of the run, when all losses take part."""
    autoencoder, discriminator = networks.autoencoder, networks.discriminator
    perceptual = networks.loss.perceptual
    shape = config.channels, config.size, config.size

    def add_gradients(copies: list[nn.Module], images: int, parts: int, precision: Context) -> None:
        first, *others = copies
        distance = None
        if perceptual is not None:
            distance = copy.copy(perceptual)
            distance.lpips = others.pop()  # pyright: ignore[reportFunctionMemberAccess]
        loss = AutoencoderLoss(config.loss, config.steps, distance, precision)
        adversary = cast(Discriminator, others[0]) if others else None
        training = AutoencoderTraining(cast(Autoencoder, first), adversary, loss, precision)
        pixels = torch.empty(parts * images, *shape)
        noise = torch.empty(autoencoder.latent_shape(pixels))
        shown = min(parts, MOST_PARTS)
        some = slice(shown * images)
        training.backward(pixels[some], noise[some], config.steps - 1, shown)

    frozen: list[nn.Module] = []
    if perceptual is not None:
        from autoencoder.training.lpips import PerceptualDistance  # imports lpips and torchvision

        assert isinstance(perceptual, PerceptualDistance)
        frozen.append(perceptual.lpips)
    return StepWork(
        trained=[autoencoder] if discriminator is None else [autoencoder, discriminator],
        frozen=frozen,
        averaged=average_bytes(config, autoencoder),
        add_gradients=add_gradients,
    )


def diffusion_work(
    config: DiffusionTrainingConfig,
    unet: UNet,
    vae: Autoencoder,
    condition: Condition,
    task: TrainingTask = DRAWING,
) -> StepWork:
    """Return the work of a step of stage 2. The encoders stay in memory, to draw previews."""
    side = config.size // vae.factor
    latent = vae.config.latent_channels, side, side
    # Made here, with data, since it checks the values of the schedule.
    denoiser = Denoiser(unet, make_schedule(config.schedule), config.objective.prediction)

    def add_gradients(copies: list[nn.Module], images: int, parts: int, precision: Context) -> None:
        network = cast(UNet, copies[0])
        network.gradient_checkpointing = config.gradient_checkpointing
        denoiser.network = network
        count = parts * images
        latents, noise = torch.empty(count, *latent), torch.empty(count, *latent)
        inputs = task.example(latents)
        batch = latents, noise, *inputs, *condition.example(count)
        for latents, noise, *rest in list(zip(*(b.split(images) for b in batch), strict=True))[
            :MOST_PARTS
        ]:
            t = torch.zeros(images, dtype=torch.long)
            conditioning = condition.conditioning(*rest[len(inputs) :])
            conditioning = task.join(conditioning, *rest[: len(inputs)])
            with precision:
                loss = denoising_loss(
                    denoiser, latents, conditioning, config.objective, t=t, noise=noise
                ).mean()
            torch.autograd.backward(loss)

    return StepWork(
        trained=[unet],
        frozen=[vae] if condition.text_encoder is None else [vae, condition.text_encoder],
        averaged=average_bytes(config, unet),
        add_gradients=add_gradients,
    )


def clip_work(config: ClipTrainingConfig, clip: Clip) -> StepWork:
    """Return the work of a step of stage 0 if every caption is as long as possible."""
    size, length = clip.size, clip.tokenizer.context_length

    def add_gradients(copies: list[nn.Module], images: int, parts: int, precision: Context) -> None:
        network = cast(Clip, copies[0])
        pixels = torch.empty(images, 3, size, size).to(torch.uint8)
        with precision:
            found = network.image_features(pixels)
            texts: Tensor = network.pool_text(torch.zeros(images, length, dtype=torch.long))
        torch.autograd.backward(contrastive_loss(found, texts.float(), network.logit_scale))

    return StepWork(trained=[clip], frozen=[], averaged=0, add_gradients=add_gradients)


def average_bytes(config: EMATrainingConfig, module: nn.Module) -> int:
    """Return the bytes of the EMA, and of the power-function averages if they are stored."""
    copies = 1 + (len(SIGMA_RELS) if config.averages_every else 0)
    return 4 * copies * sum(weight.numel() for weight in module.parameters())
