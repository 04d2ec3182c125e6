"""What the latents of an autoencoder look like, channel by channel, and which carry nothing.

Moments are those of latents as training draws them, samples of the posterior; nothing has to be
drawn, because the moments of a Gaussian are known.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

MIN_SIGNAL = 0.01  # variance of the mean per variance of the noise; a channel below is dead


@dataclass(frozen=True)
class LatentChannel:
    """Statistics of one channel over all positions of all images.

    Args:
        kl: to N(0, 1), in nats per position.
        kurtosis: 3 for a normal distribution; far above, a few positions have huge values.
        signal: variance of the posterior's mean, per variance of its noise.
    """

    kl: float
    mean: float
    std: float
    kurtosis: float
    signal: float

    @property
    def is_dead(self) -> bool:
        """Whether it carries noise and no information about the image.

        The KL to N(0, 1) alone does not show that: a constant far from 0 has a large KL. A channel
        is dead if its mean varies much less, between positions and images, than its noise:
        var(mean) < 0.01 E[std^2]. (A criterion in the spirit of the active units of Burda et al.
        2015, arXiv:1509.00519, but independent of the scale of the latents.)
        """
        return not self.signal >= MIN_SIGNAL


def image_moments(
    mean: Float[Tensor, "n c h w"], logvar: Float[Tensor, "n c h w"]
) -> Float[Tensor, "n c 7"]:
    """Return what `latent_channels` needs of each image: means over positions, in float64.

    They are KL, the first four moments of the sampled latent, the square of the mean, the variance
    of the noise.
    """
    m, logarithm = mean.cpu().double(), logvar.cpu().double()  # MPS has no float64
    v = logarithm.exp()
    parts = [
        0.5 * (m**2 + v - 1 - logarithm),
        m,
        m**2 + v,
        m**3 + 3 * m * v,
        m**4 + 6 * m**2 * v + 3 * v**2,
        m**2,
        v,
    ]
    return torch.stack([part.mean(dim=(2, 3)) for part in parts], dim=2)


def latent_channels(moments: Float[Tensor, "n c 7"]) -> list[LatentChannel]:
    """Return the statistics of each channel, from the moments of images of equal size."""
    found = []
    for kl, m1, m2, m3, m4, square, noise in moments.mean(dim=0).tolist():
        variance = max(m2 - m1**2, 0.0)
        fourth = m4 - 4 * m1 * m3 + 6 * m1**2 * m2 - 3 * m1**4
        kurtosis = fourth / variance**2 if variance > 0 else float("nan")
        signal = (square - m1**2) / noise if noise > 0 else float("inf")
        found.append(LatentChannel(kl, m1, variance**0.5, kurtosis, signal))
    return found


def describe_channels(channels: Sequence[LatentChannel]) -> str:
    """Return one line about the dead channels, for people."""
    return name_dead_channels(channels) or f"latent channels: all {len(channels)} are used"


def name_dead_channels(channels: Sequence[LatentChannel]) -> str:
    """Return how many channels are dead, which, and what may be the cause; "" if none is."""
    dead = [k for k, channel in enumerate(channels) if channel.is_dead]
    if not dead:
        return ""
    return (
        f"{len(dead)} of {len(channels)} latent channels carry no information "
        f"({', '.join(map(str, dead))}). Normal in the first hundred steps; later, the weight of "
        "the KL (kl_weight) is too high, or there are more channels than the images need."
    )
