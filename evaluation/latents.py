"""What the latents of an autoencoder look like, channel by channel.

Moments are those of latents as training draws them, samples of the posterior; nothing has to be
drawn, because the moments of a Gaussian are known.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


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


def image_moments(
    mean: Float[Tensor, "n c h w"], logvar: Float[Tensor, "n c h w"]
) -> Float[Tensor, "n c 7"]:
    """Return what `latent_channels` needs of each image: means over positions, in float64.

    They are KL, the first four moments of the sampled latent, the square of the mean, the variance
    of the noise.
    """
    m, logarithm = mean.double().cpu(), logvar.double().cpu()
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
