"""Statistics of latents: mean and standard deviation, folded into the network.

A diffusion model needs latents of zero mean and unit variance. The statistics of each channel are
measured once and folded into the two 1x1 convolutions, so that no scale remains that anybody could
forget, or apply in one place only.
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
    """Mean and standard deviation of each latent channel, over all positions of some images."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    images: int  # how many were measured


@torch.no_grad()
def measure_statistics(autoencoder: Autoencoder, batches: Iterable[AnyImages]) -> LatentStatistics:
    """Measure latents as training draws them, which are samples of the posterior.

    By the law of total variance  var(z) = var(mean) + E[std^2], so nothing needs to be drawn.
    Sums are computed in float64, over the images of all ranks.

    Raises:
        UserError: there are no images, or a channel is constant or not finite, so that no scale
            would make it usable.
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
    for channel, value in enumerate(floats(std)):
        if not 1e-6 < value < float("inf"):  # also refuses NaN
            raise UserError(
                f"latent channel {channel} has standard deviation {value:g} over the images: "
                "the autoencoder has not learned, or has diverged. Look at its reconstructions."
            )
    return LatentStatistics(floats(mean), floats(std), int(counts[1]))


@torch.no_grad()
def fold_statistics(autoencoder: Autoencoder, statistics: LatentStatistics) -> Autoencoder:
    """Return an autoencoder with latents (z - mean) / std, and with the same reconstructions.

    No scale is left in its config: what the config applied to the latents is folded in, too. An
    autoencoder without 1x1 convolutions gets them. The bounds of the log-variance, -30 and 20,
    then apply to the log-variance of the new latents.
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

    # new = scale * raw + shift, where raw is the output of the network before any scaling
    mean = torch.tensor(statistics.mean, dtype=torch.float64)
    std = torch.tensor(statistics.std, dtype=torch.float64)
    scale, shift = autoencoder.config.scale_and_shift()
    scale, shift = scale / std, -(shift * scale + mean) / std

    weight, bias = read_1x1(autoencoder.quant_conv, 2 * z)
    weight[:z] *= scale[:, None]
    bias[:z] = bias[:z] * scale + shift
    bias[z:] += 2 * scale.log()
    write_1x1(folded.quant_conv, weight, bias)

    weight, bias = read_1x1(autoencoder.post_quant_conv, z)
    write_1x1(folded.post_quant_conv, weight / scale, bias - weight @ (shift / scale))
    return folded.train(autoencoder.training)


def fold_config_scale(autoencoder: Autoencoder) -> Autoencoder:
    """Return an autoencoder with the same latents whose config has no scale left to apply."""
    if not autoencoder.config.scaled:
        return autoencoder
    channels = autoencoder.config.latent_channels
    return fold_statistics(
        autoencoder, LatentStatistics((0.0,) * channels, (1.0,) * channels, images=0)
    )


def read_1x1(conv: nn.Module, channels: int) -> tuple[Tensor, Tensor]:
    """Return weight matrix and bias of a 1x1 convolution, or of the identity, in float64."""
    if isinstance(conv, nn.Identity):
        return torch.eye(channels, dtype=torch.float64), torch.zeros(channels, dtype=torch.float64)
    assert isinstance(conv, nn.Conv2d) and conv.bias is not None
    copies = (x.to("cpu", copy=True) for x in (conv.weight[:, :, 0, 0], conv.bias))
    weight, bias = (x.double() for x in copies)  # on the CPU: MPS has no float64
    return weight, bias


def write_1x1(conv: nn.Module, weight: Tensor, bias: Tensor) -> None:
    """Set weight matrix and bias of a 1x1 convolution, in place."""
    assert isinstance(conv, nn.Conv2d) and conv.bias is not None
    conv.weight.copy_(weight[:, :, None, None])
    conv.bias.copy_(bias)


def floats(tensor: Tensor) -> tuple[float, ...]:
    """Return the elements of a 1-dim tensor as Python numbers."""
    return tuple(float(element) for element in tensor)
