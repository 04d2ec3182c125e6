"""How close two sets of images are, pixel by pixel."""

import torch
from jaxtyping import Float, Real
from torch import Tensor


def psnr(images: Real[Tensor, "b c h w"], others: Real[Tensor, "b c h w"]) -> Float[Tensor, " b"]:
    """Peak signal-to-noise ratio of each pair in dB; infinite for equal ones.

    The range is that of 8-bit pixels, or for floating-point numbers [-1, 1].

    20 dB is a mean error of a tenth of the range, 40 dB of a hundredth. Report the mean over
    images, as is usual; it lies above the PSNR of the mean error.
    """
    span = 2 if images.is_floating_point() else 255
    error = (images.double() - others.double()).square().mean(dim=(1, 2, 3))
    return 10 * torch.log10(span**2 / error)
