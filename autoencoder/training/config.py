"""What is chosen about the training of an autoencoder: the terms of its loss.

Nothing here imports torch, so that flags and presets can be read without it.
"""

import math
from dataclasses import dataclass
from typing import Literal

from foundation.errors import UserError

Start = int | float  # a step; with a decimal point and below 1, a fraction of the run


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Terms and weights of the loss."""

    reconstruction: Literal["l1", "l2"] = "l1"  # l1 blurs less; l2 is a Gaussian likelihood
    perceptual: Literal["vgg", "alex", "squeeze", "none"] = "vgg"  # backbone of LPIPS
    perceptual_weight: float = 1.0  # of LPIPS, relative to the reconstruction
    kl_weight: float = 1e-6  # of the KL per image value; the default is Stable Diffusion's
    adversarial_weight: float = 0.5  # 0: no discriminator at all
    adaptive: bool = True  # multiply that by ||grad reconstruction|| / ||grad adversarial||
    discriminator_start: Start = (
        0.2  # step or fraction of the run: the discriminator starts to learn
    )
    adversarial_start: Start = 0.3  # step or fraction of the run: the GAN loss is added
    adversarial_ramp: Start = 0.1  # steps or fraction of the run until it has its full weight
    learned_logvar: bool = False  # learn the variance of the reconstruction as well

    def __post_init__(self):
        for name in ("perceptual_weight", "kl_weight", "adversarial_weight"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UserError(f"{name} is {getattr(self, name)}; weights are 0 or more.")
