"""The U-Net that a training of stage 2 begins with: a new one, or that of another model."""

from dataclasses import replace

import torch

from autoencoder import Autoencoder
from foundation.errors import UserError
from foundation.seeds import derived_seed
from ldm.unet import PRESETS as ARCHITECTURES
from ldm.unet import UNet
from stages.condition import Condition
from stages.finetune import check_noise_process, load_unet, with_inputs
from stages.flags.diffusion import DiffusionTrainingConfig
from stages.lora import add_adapter
from stages.tasks.base import DRAWING, TrainingTask


def side_multiple(unet: UNet, vae: Autoencoder) -> int:
    """Return the number of which both sides of an image must be multiples, in pixels."""
    return vae.factor * 2 ** (len(unet.config.block_out_channels) - 1)


def build_unet(
    config: DiffusionTrainingConfig,
    vae: Autoencoder,
    condition: Condition,
    task: TrainingTask = DRAWING,
) -> UNet:
    """Return the U-Net of `init_from`, or a new one of the preset, for latents and condition.

    One of `init_from` that draws from noise alone gets the inputs of the task.

    Raises:
        UserError: the U-Net of `init_from` does not go with them or with the flags, or the size of
            the images does not go with the U-Net.
    """
    if config.init_from is not None:
        unet = load_unet(config.init_from, config.size, vae, condition, task)
        process = (config.schedule, config.objective.prediction)
        check_noise_process(config.init_from, unet, condition, process)
        if unet.config != task.architecture(unet.config):
            if config.lora is not None:
                raise UserError(
                    f"--lora leaves the weights of {config.init_from} as they are, and this U-Net "
                    f"has none for the inputs of --task {task.name}. Train it without --lora, or "
                    "begin with a model of this task."
                )
            torch.manual_seed(derived_seed(config.seed, "weights"))
            unet = with_inputs(unet, task)
        check_size(config.size, vae.factor, levels=len(unet.config.block_out_channels))
    else:
        architecture = ARCHITECTURES[config.preset]
        check_size(config.size, vae.factor, levels=len(architecture.block_out_channels))
        torch.manual_seed(derived_seed(config.seed, "weights"))
        unet = UNet(
            task.architecture(
                replace(
                    condition.architecture(architecture),
                    out_channels=vae.config.latent_channels,
                    sample_size=config.size // vae.factor,
                )
            )
        )
    unet.gradient_checkpointing = config.gradient_checkpointing
    return unet


def check_size(size: int, shrink: int, levels: int) -> None:
    """Raise UserError unless the U-Net can halve the latents at every level but the last.

    Args:
        size: side of the images in pixels.
        shrink: how many times the autoencoder shrinks them.
        levels: of the U-Net.
    """
    halving = 2 ** (levels - 1)
    factor = shrink * halving
    if size % factor:
        raise UserError(
            f"--size {size} is not a multiple of {factor}: the autoencoder shrinks images "
            f"{shrink} times, and the U-Net its latents {halving} times. "
            f"Use --size {max(1, size // factor) * factor}."
        )


def set_up_lora(config: DiffusionTrainingConfig, unet: UNet) -> None:
    """With `--lora`, freeze the U-Net and add a LoRA to it, which is trained instead."""
    if config.lora is None:
        return
    if config.init_from is None:
        raise UserError("--lora changes a model that is there; say which one: --init-from MODEL.")
    torch.manual_seed(derived_seed(config.seed, "lora"))
    add_adapter(unet, config.lora, config.lora_alpha or config.lora, config.lora_targets)
    trained = sum(weight.numel() for weight in unet.parameters() if weight.requires_grad)
    print(f"LoRA of rank {config.lora}: {trained / 1e6:.3g} million parameters learn.")
