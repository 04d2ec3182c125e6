"""--overfit: the recipes and targets of the three stages on a handful of images.

The targets were measured with the presets `tiny-32` and `small-64` on OpenMoji; docs/instruments.md
has the figures.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from stages import autoencoder as vae_stage
from stages import clip as clip_stage
from stages import diffusion_config as ldm_recipe
from training.config import TrainingConfig
from training.tools.overfit_check import Target, check_overfit

Config = TypeVar("Config", bound=TrainingConfig)

VAE = Target(
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
LDM = Target(
    metric="val_loss_relative",
    bound=0.2,
    above=False,
    words="validation loss, as a share of what predicting nothing scores,",
    steps=600,
    limits=(
        "Likely: latents of another autoencoder, or of one that has not learned (look at its "
        "previews); the same caption for all images; a U-Net too small for so many latents."
    ),
)
CLIP = Target(
    metric="train_recall@1",
    bound=1.0,
    above=True,
    words="share of images that find their text",
    steps=100,
    limits="Likely: captions or images that are the same, or differ only after the last token.",
)


def learn_by_heart(config: Config, train: Callable[[Config], None]) -> None:
    """train: the rest of the stage's script, given a config for the handful of images.

    Raises:
        ValueError: they were not learned; says what is likely wrong.
    """
    images = config.overfit
    target, loss = target_of(config)
    common = {
        "steps": target.steps,
        "batch_size": images,
        "warmup": target.steps // 20,
        "held_out": 0.0,
        "log_every": max(target.steps // 40, 1),
        "evaluate_every": target.steps,
        "save_every": target.steps,
        "wandb": None,
    }
    changed = replace(config, **common, **particular(config, target.steps * images))

    def run(folder: Path) -> None:
        train(replace(changed, out=folder))

    check_overfit(run, target, loss, images)


def target_of(config: TrainingConfig) -> tuple[Target, str]:
    """The target, and the name of the training loss."""
    if isinstance(config, vae_stage.Config):
        return VAE, config.loss.reconstruction
    return (LDM, "loss") if isinstance(config, ldm_recipe.Config) else (CLIP, "loss")


def particular(config: TrainingConfig, images_seen: int) -> dict:
    """No adversary, whose loss has no end to reach; averages as short as the run."""
    if isinstance(config, clip_stage.Config):
        return {}
    short = {"ema_halflife": max(images_seen // 50, 1), "averages_every": 0}
    if isinstance(config, vae_stage.Config):
        return {**short, "loss": replace(config.loss, adversarial_weight=0.0)}
    return {**short, "caption_dropout": 0.0, "preview_prompts": ()}
