"""Group normalization that keeps the memory format of feature maps on GPUs."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foundation.shapes import Features


class GroupNorm(nn.GroupNorm):
    """GroupNorm (Wu & He 2018, arXiv:1803.08494) whose output is laid out in memory like its input.

    PyTorch's kernel for CUDA copies a channels_last feature map into the default format, and so the
    next convolution has to copy it back. Kernels for CPUs keep the format, and so does compiled
    code.
    """

    def forward(self, input: Features) -> Features:
        if input.is_cuda and is_channels_last(input) and not torch.compiler.is_compiling():
            return group_norm_of_pixels(input, self.num_groups, self.weight, self.bias, self.eps)
        return F.group_norm(input, self.num_groups, self.weight, self.bias, self.eps)


def at_least_float32(x: Tensor) -> Tensor:
    """Convert half precision to float32, and leave float32 and float64 as they are.

    Half precision suffices for products. Sums of many values need more digits.
    """
    return x.to(torch.promote_types(x.dtype, torch.float32))


def is_channels_last(x: Tensor) -> bool:
    """Return whether a pixel's channels lie together, and the default format would be another."""
    return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


def group_norm_of_pixels(
    x: Features, groups: int, weight: Tensor, bias: Tensor, eps: float
) -> Features:
    """Normalize in groups of channels, by operations that keep the channels_last format.

    Mean and variance have at least 32 bits, as in PyTorch's own kernels.

    Returns:
        The normalized features, in the type of `x`.
    """
    exact = at_least_float32(x)
    b, c, h, w = exact.shape
    pixels = exact.permute(0, 2, 3, 1).reshape(b, h * w, groups, c // groups)  # a view
    variance, mean = torch.var_mean(pixels, dim=(1, 3), correction=0)  # (b, groups)
    deviation = (variance + eps).rsqrt()
    scale = deviation[:, :, None] * weight.view(groups, -1)  # (b, groups, channels of a group)
    shift = bias.view(groups, -1) - mean[:, :, None] * scale
    scale, shift = scale.view(b, c, 1, 1), shift.view(b, c, 1, 1)
    return torch.addcmul(shift, exact, scale).to(x.dtype)
