"""The flags and presets of train_vae.py."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

from autoencoder.training.config import LossConfig
from dataset.options import Layout, ReadOptions
from stages.flags.data import Aspect, DataTrainingConfig
from training.config import EMATrainingConfig, extended
from training.flags import Groups, Needs, Positive, needs

Factor = Literal[2, 4, 8, 16, 32]


@dataclass(frozen=True, kw_only=True)
class AutoencoderTrainingConfig(EMATrainingConfig, DataTrainingConfig):
    """Flags of train_vae.py."""

    GROUPS: ClassVar[Groups] = extended(
        EMATrainingConfig.GROUPS,
        {
            "data": (
                *(*ReadOptions.READ_FLAGS, "size", "max_aspect"),
                *("channels", "value_range", "layout"),
            ),
            "model": ("factor", "latent_channels", "init_from", "freeze"),
            "training": ("optimizer", "matrix_rate", "clip_norm", "statistics_images"),
            "loss": ("loss",),
            "discriminator": ("discriminator_rate", "discriminator_width", "discriminator_layers"),
            "output": ("best_by",),
        },
    )

    NEEDS: ClassVar[Needs] = (
        needs("matrix_rate", optimizer=("muon",)),
        needs("perceptual_weight", perceptual=("vgg", "alex", "squeeze")),
        needs(
            *("adaptive", "discriminator_start", "adversarial_start", "adversarial_ramp"),
            *("discriminator_rate", "discriminator_width", "discriminator_layers"),
            adversarial_weight=True,
        ),
        needs("kl_weight", "statistics_images", freeze=("none",)),
    )

    # how many times smaller than the images the latents are; left out: the preset's
    factor: Factor | None = None
    latent_channels: Positive[int] | None = None  # numbers per latent pixel; as `factor`
    init_from: Path | None = None  # begin with the weights of this autoencoder, a folder or file
    freeze: Literal["none", "encoder"] = "none"  # encoder: train the decoder alone
    size: Positive[int] = 64  # side of the training images in pixels
    max_aspect: Aspect = 1.0  # 1: squares; 2: also shapes up to 2:1 and 1:2, of the same area
    channels: Positive[int] = 3  # 1 gray, 3 RGB, 4 RGBA; or those of TIFF or .npy files
    # pixel values that become -1 and 1, as in 0 4095; left out: the whole range of 8 or 16 bits
    value_range: tuple[float, float] | None = None
    layout: Layout = "auto"  # of .npy files with three axes; auto: by the number of channels
    # muon: it moves the matrices inside the blocks, Adam the rest; each image teaches more
    optimizer: Literal["adam", "muon"] = "adam"
    matrix_rate: Positive[float] = 3.0  # learning rate of Muon, in multiples of the other
    clip_norm: Positive[float] = 1.0  # gradients are scaled down to this norm
    loss: LossConfig = field(default_factory=LossConfig)
    discriminator_rate: Positive[float] = 1.0  # its learning rate, as a multiple of the other
    discriminator_width: Positive[int] = 64  # channels of its first layer
    discriminator_layers: int = 3  # 1, 2 or 3: it sees patches of 16, 34 or 70 pixels
    # training images on which mean and variance of the latents are measured at the end
    statistics_images: Positive[int] = 4096
    # keep the weights with the highest PSNR of held-out images in best/; none: do not
    best_by: Literal["psnr", "none"] = "psnr"


# Each preset is an architecture of the same name (autoencoder/model.py) and defaults for it.
OFFLINE = LossConfig(reconstruction="l2", perceptual="none", adversarial_weight=0.0)
PRESETS = {
    "tiny-32": {
        "size": 32,
        "steps": 600,  # 33 to 36 dB; after 300 steps colors may still be wrong: 20 to 28 dB
        "learning_rate": 3e-3,
        "ema_halflife": 192,
        "loss": OFFLINE,
    },
    "fashion-32": {
        "size": 32,
        "channels": 1,
        "steps": 6000,
        "batch_size": 16,
        "learning_rate": 3e-3,
        "cooldown": 1.0,
        "ema_halflife": 1920,
        "evaluate_every": 1500,
        "loss": OFFLINE,
    },
    "demo": {
        "size": 48,
        "steps": 1000,
        "batch_size": 8,  # in the same time 2 dB better than 16, on CPUs without bf16
        "optimizer": "muon",
        "learning_rate": 6e-3,
        "cooldown": 1.0,
        "ema_halflife": 160,
        "evaluate_every": 250,
        "save_every": 250,
        "loss": OFFLINE,
    },
    "small-64": {
        "steps": 5000,
        "batch_size": 8,
        "learning_rate": 3e-3,
        "cooldown": 1.0,
        "ema_halflife": 800,
        "evaluate_every": 1000,
        "loss": OFFLINE,
    },
    "small-128": {
        "size": 128,
        "steps": 10_000,
        "batch_size": 8,
        "learning_rate": 2e-3,
        "cooldown": 1.0,
        "ema_halflife": 1600,
        "evaluate_every": 1000,
        "loss": OFFLINE,
    },
    "base-128": {
        "size": 128,
        "steps": 100_000,
        "batch_size": 32,
        "learning_rate": 1e-4,
        "ema_halflife": 64_000,
    },
    "base-256": {
        "size": 256,
        "steps": 200_000,
        "batch_size": 32,
        "accumulate": 4,
        "learning_rate": 1e-4,
        "ema_halflife": 128_000,
    },
    "base-512": {
        "size": 512,
        "steps": 200_000,
        "batch_size": 16,
        "accumulate": 8,
        "learning_rate": 1e-4,
        "ema_halflife": 64_000,
    },
    "sd15": {
        "size": 256,
        "steps": 400_000,
        "batch_size": 32,
        "learning_rate": 5e-5,
        "ema_halflife": 256_000,
    },
}
