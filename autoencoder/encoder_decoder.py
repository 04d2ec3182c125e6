"""Encoder: images to the moments of the latents. Decoder: latents to images.

Both put their input into the memory layout that is fastest on the hardware; all layers then keep
it. The weights keep their own layout, because an optimizer state restored from disk must be laid
out like them. In evaluation on a CPU everything is computed as diffusers does it, so that even the
rounding is the same.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autoencoder.layers import Downsample, MiddleBlock, ResidualBlock, Upsample, group_norm
from foundation.shapes import Features, Images, Latents, Moments, Resized


def fastest_layout(x: Features, training: bool) -> Features:
    """Convert to channels-last memory layout, in which convolutions are faster on CPUs and GPUs.

    Two cases on a CPU stay contiguous. With bfloat16, the backward pass of a normalization would
    be ten times slower. In evaluation there is little to gain, and rounding would be three times
    as coarse.
    """
    plain = x.device.type == "cpu" and (not training or torch.is_autocast_enabled("cpu"))
    layout = torch.contiguous_format if plain else torch.channels_last
    return x.contiguous(memory_format=layout)


def residual_blocks(in_channels: int, out_channels: int, layers: int, groups: int) -> nn.ModuleList:
    """Make a chain of residual blocks, of which the first changes the number of channels."""
    widths = [in_channels] + [out_channels] * layers
    return nn.ModuleList(ResidualBlock(before, after, groups) for before, after in pairwise(widths))


class DownBlock(nn.Module):
    """Residual blocks at one resolution, then downsampling, except at the lowest resolution."""

    def __init__(self, in_channels: int, out_channels: int, layers: int, groups: int, last: bool):
        super().__init__()
        self.resnets = residual_blocks(in_channels, out_channels, layers, groups)
        self.downsamplers = nn.ModuleList([] if last else [Downsample(out_channels)])

    def forward(self, x: Features) -> Resized:
        for layer in (*self.resnets, *self.downsamplers):
            x = layer(x)
        return x


class UpBlock(nn.Module):
    """Residual blocks at one resolution, then upsampling, except at the highest resolution."""

    def __init__(self, in_channels: int, out_channels: int, layers: int, groups: int, last: bool):
        super().__init__()
        self.resnets = residual_blocks(in_channels, out_channels, layers, groups)
        self.upsamplers = nn.ModuleList([] if last else [Upsample(out_channels)])

    def forward(self, x: Features) -> Resized:
        for layer in (*self.resnets, *self.upsamplers):
            x = layer(x)
        return x


class Encoder(nn.Module):
    """Images to the moments of the latents, each side 2^(levels - 1) times smaller.

    Args:
        widths: channels of each resolution level, highest resolution first.
        layers: residual blocks per level.
        groups: of every GroupNorm; must divide all widths.
        mid_attention: whether there is attention at the lowest resolution.
    """

    def __init__(
        self,
        in_channels: int,
        latent_channels: int,
        *,
        widths: Sequence[int],
        layers: int,
        groups: int,
        mid_attention: bool,
    ):
        super().__init__()
        self.conv_in = nn.Conv2d(in_channels, widths[0], 3, padding=1)
        self.down_blocks = nn.ModuleList(
            DownBlock(before, after, layers, groups, last=level == len(widths) - 1)
            for level, (before, after) in enumerate(pairwise([widths[0], *widths]))
        )
        self.mid_block = MiddleBlock(widths[-1], groups, mid_attention)
        self.conv_norm_out = group_norm(groups, widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], 2 * latent_channels, 3, padding=1)

    def forward(self, images: Images) -> Moments:
        x = self.conv_in(fastest_layout(images, self.training))
        for block in self.down_blocks:
            x = block(x)
        x = self.mid_block(x)
        return self.conv_out(F.silu(self.conv_norm_out(x)))


class Decoder(nn.Module):
    """Latents to images: the encoder mirrored, with one residual block more per resolution level.

    The arguments are those of `Encoder`; `widths` has the highest resolution first here, too.
    """

    def __init__(
        self,
        out_channels: int,
        latent_channels: int,
        *,
        widths: Sequence[int],
        layers: int,
        groups: int,
        mid_attention: bool,
    ):
        super().__init__()
        self.conv_in = nn.Conv2d(latent_channels, widths[-1], 3, padding=1)
        self.mid_block = MiddleBlock(widths[-1], groups, mid_attention)
        self.up_blocks = nn.ModuleList(
            UpBlock(before, after, layers + 1, groups, last=level == len(widths) - 1)
            for level, (before, after) in enumerate(pairwise([widths[-1], *widths[::-1]]))
        )
        self.conv_norm_out = group_norm(groups, widths[0])
        self.conv_out = nn.Conv2d(widths[0], out_channels, 3, padding=1)
        self.compiled_features: Callable[[Tensor], Tensor] | None = None

    def forward(self, latents: Latents) -> Images:
        features = self.compiled_features or self.features
        return self.conv_out(features(latents))

    def features(self, latents: Latents) -> Resized:
        """Compute everything up to the last convolution."""
        x = self.conv_in(fastest_layout(latents, self.training))
        x = self.mid_block(x)
        for block in self.up_blocks:
            x = block(x)
        return F.silu(self.conv_norm_out(x))

    def compile_features(self) -> None:
        """Compile everything up to the last convolution, and use the result from now on."""
        self.compiled_features = torch.compile(self.features)
