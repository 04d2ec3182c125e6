"""Latents of zero mean and unit variance: measured once, then part of the network.

A diffusion model wants latents of unit variance. Here the statistics of each channel are folded
into the two 1x1 convolutions, so that no scale remains for anyone to apply, or to apply by half.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from autoencoder.model import Autoencoder
from foundation.collectives import sum_ranks
from foundation.errors import UserError
from foundation.shapes import AnyImages


@dataclass(frozen=True)
class LatentStatistics:
    """Per channel, over all positions of the latents of a sample of images."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    images: int


@torch.no_grad()
def measure(autoencoder: Autoencoder, batches: Iterable[AnyImages]) -> LatentStatistics:
    """Mean and standard deviation of latents as training draws them: samples of the posterior.

    By the law of total variance  var(z) = var(mean) + E[std^2], so nothing needs to be drawn.
    Sums are kept in float64, over all processes if there are several.

    Raises:
        ValueError: a channel is constant or not finite, so that no scale would make it usable.
    """
    channels = autoencoder.config.latent_channels
    sums = torch.zeros(3, channels, dtype=torch.float64)  # of mean, mean^2, std^2
    counts = torch.zeros(2, dtype=torch.float64)  # of positions, images
    for images in batches:
        posterior = autoencoder.encode(images, check=False)
        mean, std = (x.cpu().double() for x in (posterior.mean, posterior.std))
        sums += torch.stack([x.sum(dim=(0, 2, 3)) for x in (mean, mean.square(), std.square())])
        counts += torch.tensor([mean[:, 0].numel(), len(mean)])
    sums, counts = sum_ranks(sums), sum_ranks(counts)
    if not counts[0]:
        raise UserError("no images were given, so there are no latents to measure.")
    mean, square, variance = sums / counts[0]
    std = (square - mean.square() + variance).sqrt()
    for channel, value in enumerate(std.tolist()):
        if not 1e-6 < value < float("inf"):  # also refuses NaN
            raise UserError(
                f"latent channel {channel} has standard deviation {value:g} over the sample: "
                "the autoencoder has not learned, or has diverged. Look at its reconstructions."
            )
    return LatentStatistics(tuple(mean.tolist()), tuple(std.tolist()), int(counts[1]))


@torch.no_grad()
def fold(autoencoder: Autoencoder, statistics: LatentStatistics) -> Autoencoder:
    """The same autoencoder with latents (z - mean) / std and no scale left in its config.

    Reconstructions stay the same. What its config applied to the latents is folded in, too
    (`AutoencoderConfig.scale_and_shift`); an autoencoder without 1x1 convolutions gets them, as
    identities before the folding.
    The bounds of the log-variance, -30 and 20, then apply to that of the new latents.
    """
    config = replace(
        autoencoder.config,
        use_quant_conv=True,
        use_post_quant_conv=True,
        scaling_factor=1.0,
        shift_factor=None,
        latents_mean=None,
        latents_std=None,
    )
    z = autoencoder.config.latent_channels
    folded = Autoencoder(config).to(autoencoder.encoder.conv_in.weight)  # device and dtype
    folded.encoder.load_state_dict(autoencoder.encoder.state_dict())
    folded.decoder.load_state_dict(autoencoder.decoder.state_dict())

    # new = scale * raw + shift, where raw is what leaves the network before any scaling
    mean, std = (torch.tensor(x, dtype=torch.float64) for x in (statistics.mean, statistics.std))
    scale, shift = autoencoder.config.scale_and_shift()
    scale, shift = scale / std, -(shift * scale + mean) / std

    weight, bias = as_matrix(autoencoder.quant_conv, 2 * z)
    weight[:z] *= scale[:, None]
    bias[:z] = bias[:z] * scale + shift
    bias[z:] += 2 * scale.log()
    write_matrix(folded.quant_conv, weight, bias)

    weight, bias = as_matrix(autoencoder.post_quant_conv, z)
    write_matrix(folded.post_quant_conv, weight / scale, bias - weight @ (shift / scale))
    return folded.train(autoencoder.training)


def without_scaling(autoencoder: Autoencoder) -> Autoencoder:
    """The same autoencoder, latents included, with the scale of its config folded in."""
    if not autoencoder.config.scaled:
        return autoencoder
    channels = autoencoder.config.latent_channels
    return fold(autoencoder, LatentStatistics((0.0,) * channels, (1.0,) * channels, images=0))


def as_matrix(conv: nn.Module, channels: int) -> tuple[Tensor, Tensor]:
    """Weight and bias of a 1x1 convolution, or of the identity, in float64."""
    if isinstance(conv, nn.Identity):
        return torch.eye(channels, dtype=torch.float64), torch.zeros(channels, dtype=torch.float64)
    matrix = conv.weight[:, :, 0, 0]
    return tuple(x.to("cpu", torch.float64, copy=True) for x in (matrix, conv.bias))


def write_matrix(conv: nn.Conv2d, weight: Tensor, bias: Tensor) -> None:
    conv.weight.copy_(weight[:, :, None, None])
    conv.bias.copy_(bias)
