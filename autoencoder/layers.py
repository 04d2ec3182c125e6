"""Layers that encoder and decoder share: residual block, attention, change of resolution.

The architecture is that of Rombach et al. 2022 (arXiv:2112.10752). Attribute names are those of
diffusers, because they are the keys of the weights file.
"""

import torch.nn.functional as F
from einops import rearrange
from torch import nn

from foundation.normalization import GroupNorm
from foundation.shapes import Features, Resized


def group_norm(groups: int, channels: int) -> GroupNorm:
    """Make a GroupNorm with the epsilon of Stable Diffusion (PyTorch's default is 1e-5)."""
    return GroupNorm(groups, channels, eps=1e-6)


class ResidualBlock(nn.Module):
    """Two times norm, SiLU and 3x3 convolution, added to the input.

    Where the number of channels changes, the input passes through a 1x1 convolution first.
    """

    def __init__(self, in_channels: int, out_channels: int, groups: int):
        super().__init__()
        self.norm1 = group_norm(groups, in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = group_norm(groups, out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.conv_shortcut = (
            nn.Conv2d(in_channels, out_channels, 1)
            if in_channels != out_channels
            else nn.Identity()
        )

    def forward(self, x: Features) -> Resized:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return self.conv_shortcut(x) + h


class Attention(nn.Module):
    """Self-attention over all positions, with one head as wide as the features."""

    def __init__(self, channels: int, groups: int):
        super().__init__()
        self.group_norm = group_norm(groups, channels)
        self.to_q = nn.Linear(channels, channels)
        self.to_k = nn.Linear(channels, channels)
        self.to_v = nn.Linear(channels, channels)
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])  # a list in diffusers' keys

    def forward(self, x: Features) -> Features:
        tokens = rearrange(self.group_norm(x), "b c h w -> b 1 (h w) c")  # 1: one head
        q, k, v = self.to_q(tokens), self.to_k(tokens), self.to_v(tokens)
        tokens = self.to_out[0](F.scaled_dot_product_attention(q, k, v))
        return x + rearrange(tokens, "b 1 (h w) c -> b c h w", h=x.shape[-2])


class Downsample(nn.Module):
    """A 3x3 convolution with stride 2, which halves both sides.

    It pads at the right and at the bottom only, as Stable Diffusion was trained. Padding at all
    sides would shift the image by a latent pixel, without an error.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Features) -> Resized:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Nearest-neighbor upsampling to twice both sides, then a 3x3 convolution.

    In training mode it is computed as the transposed convolution that it equals: since each pair
    of doubled pixels has the same value, the 3x3 kernel acts as a 4x4 kernel of stride 2. That
    takes 16 products per input pixel instead of 36, and no enlarged copy. On CPUs it is twice as
    fast, forward and backward.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Features) -> Resized:
        if not self.training:
            return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))
        kernel = self.conv.weight.transpose(0, 1).flip(2, 3)
        kernel = F.avg_pool2d(kernel, 2, stride=1, padding=1, divisor_override=1)  # sums pairs
        return F.conv_transpose2d(x, kernel, self.conv.bias, stride=2, padding=1)


class MiddleBlock(nn.Module):
    """Residual block, optional attention, residual block, at the lowest resolution."""

    def __init__(self, channels: int, groups: int, add_attention: bool):
        super().__init__()
        self.attentions = nn.ModuleList([Attention(channels, groups)] if add_attention else [])
        self.resnets = nn.ModuleList(ResidualBlock(channels, channels, groups) for _ in range(2))

    def forward(self, x: Features) -> Features:
        x = self.resnets[0](x)
        for attention in self.attentions:
            x = attention(x)
        return self.resnets[1](x)
