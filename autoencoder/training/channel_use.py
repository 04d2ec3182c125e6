"""What each channel of the latents carries: many nats, few, or nothing at all."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from autoencoder.posterior import Posterior

DEAD = 0.01  # signal per noise (variances) below which a channel tells images apart by chance


@dataclass(frozen=True)
class ChannelUse:
    """kl: nats per position of the latents; dead: the channels that carry noise and no picture."""

    kl: tuple[float, ...]
    dead: tuple[int, ...]

    def describe(self) -> str:
        if not self.dead:
            return f"latent channels: all {len(self.kl)} are used"
        names = ", ".join(map(str, self.dead))
        return (
            f"latent channels: {names} DEAD, of {len(self.kl)}: noise without a picture in it. "
            "Normal in the first hundred steps; later the KL weight is too high (--kl-weight), "
            "or there are more channels than the images need"
        )


@torch.no_grad()
def channel_use(
    posteriors: Iterable[Posterior], average: Callable[[Tensor], Tensor] | None = None
) -> ChannelUse:
    """Over all posteriors, with sums in float64.

    average: over the processes that share them, where there are several.

    The KL to N(0, 1) alone does not show a dead channel: a constant far from 0 has a large one. So
    a channel is dead if its mean hardly differs between positions and images, beside its noise:
    var(mean) < 0.01 E[std^2]. (A criterion in the spirit of the active units of Burda et al. 2015,
    arXiv:1509.00519, but independent of the scale of the latents.)
    """
    sums, count = 0.0, 0
    for posterior in posteriors:
        mean, logvar = posterior.mean.double(), posterior.logvar.double()
        kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar)
        values = torch.stack([kl, mean, mean.square(), logvar.exp()])
        sums = sums + values.sum(dim=(1, 3, 4)).cpu()
        count += mean[:, 0].numel()
    means = sums / count
    kl, mean, square, noise = means if average is None else average(means)
    signal = square - mean.square()
    dead = (signal < DEAD * noise).nonzero().flatten()
    return ChannelUse(tuple(kl.tolist()), tuple(dead.tolist()))
