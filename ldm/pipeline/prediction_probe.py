"""What a U-Net was trained to predict, measured: for files of Stable Diffusion 2.x, which come with
either prediction and do not say which."""

import torch
from torch import nn

from foundation.shapes import Context
from ldm.denoiser import Prediction
from ldm.schedule import TIMES

SIDE = 4  # of the feature maps at the lowest level, in pixels


@torch.no_grad()
def measure_prediction(network: nn.Module, context: Context | None) -> Prediction:
    """noise or velocity, told by one call of the network on noise at the noisiest time.

    There z_t is almost the noise itself. A network that predicts noise gives back its input, nearly
    all of it. The velocity is alpha noise - sigma z_0 with a small alpha, and of z_0 little more
    than the mean is known: nearly nothing of the input comes back.

    Args:
        network: a UNet. Channels that it takes beside those of the latents are given as zeros.
        context: the null context, a batch of one; None if the network reads no text.
    """
    config, device = network.config, network.conv_in.weight.device
    side = SIDE * 2 ** (len(config.block_out_channels) - 1)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(1, config.out_channels, side, side, generator=generator).to(device)
    beside = noise.new_zeros(1, config.in_channels - config.out_channels, side, side)
    t = torch.tensor([TIMES - 1], device=device)
    output = network(torch.cat([noise, beside], dim=1), t, context).float()
    given_back = (output * noise).sum() / noise.square().sum()  # the slope of a regression
    return "noise" if given_back > 0.5 else "velocity"
