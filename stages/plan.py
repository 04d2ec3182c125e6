"""What a training will take, told before it begins: memory of a step, averages, disk."""

import torch
from torch import Tensor, nn

from autoencoder import Autoencoder
from autoencoder.training.step import AutoencoderTraining
from conditioning import TextEncoder
from conditioning.clip import Clip
from ldm.unet import UNet
from stages import autoencoder as vae_stage
from stages import clip as clip_stage
from stages import diffusion_config as ldm_recipe
from training.config import EMATrainingConfig
from training.memory import format_bytes
from training.posthoc_ema import SIGMA_RELS, bytes_per_file
from training.precision import Precision
from training.tools.memory_estimate import MemoryEstimate, estimate_memory


def vae_memory(config: vae_stage.Config, training: AutoencoderTraining) -> MemoryEstimate:
    """The discriminator and LPIPS are counted beside the autoencoder, though not all of what they
    keep is alive at once."""
    autoencoder, discriminator = training.autoencoder, training.discriminator
    perceptual = training.loss.perceptual
    device = autoencoder.decoder.conv_out.weight.device

    def forward(count: int) -> list[Tensor]:
        images = torch.empty(count, config.channels, config.size, config.size, device=device)
        noise = torch.empty(autoencoder.latent_shape(images), device=device)
        with Precision(device, config.precision):
            again, posterior = autoencoder(images, noise)
            judged = [] if discriminator is None else [discriminator(again)]
        seen = [] if perceptual is None else [perceptual(images, again)]
        return [(images - again).square().mean(), posterior.kl(), *judged, *seen]

    return estimate_memory(
        [autoencoder] if discriminator is None else [autoencoder, discriminator],
        [] if perceptual is None else [perceptual.lpips],
        forward,
        batch_size=config.batch_size,
        averaged=averaged(config, autoencoder),
    )


def ldm_memory(
    config: ldm_recipe.Config, unet: UNet, vae: Autoencoder, encoder: TextEncoder
) -> MemoryEstimate:
    """Autoencoder and text encoder stay in memory, to draw previews."""
    device, side = unet.conv_in.weight.device, config.size // vae.factor
    tokens = config.text_chunks * encoder.tokens

    def forward(count: int) -> Tensor:
        latents = torch.empty(count, vae.config.latent_channels, side, side, device=device)
        context = torch.empty(count, tokens, encoder.width, device=device)
        with Precision(device, config.precision):
            output = unet(latents, torch.zeros(count, dtype=torch.long, device=device), context)
        return (output.float() - latents).square().mean()

    return estimate_memory(
        [unet],
        [vae, encoder],
        forward,
        batch_size=config.batch_size,
        averaged=averaged(config, unet),
    )


def clip_memory(config: clip_stage.Config, clip: Clip) -> MemoryEstimate:
    """As if every caption filled the context; shorter ones take less."""
    device = clip.network.logit_scale.device

    def forward(count: int) -> list[Tensor]:
        images = torch.empty(count, 3, clip.size, clip.size, device=device).to(torch.uint8)
        ids = torch.empty(count, clip.tokenizer.context_length, device=device).long()
        with Precision(device, config.precision):
            return [clip.image_features(images), clip.pooled(ids)]

    return estimate_memory([clip], [], forward, batch_size=config.batch_size, averaged=0)


def averaged(config: EMATrainingConfig, module: nn.Module) -> int:
    """Bytes of the EMA, and of the power-function averages if they are stored."""
    copies = 1 + (len(SIGMA_RELS) if config.averages_every else 0)
    return 4 * copies * sum(weight.numel() for weight in module.parameters())


def describe_averages(config: EMATrainingConfig, module: nn.Module) -> str:
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
