"""How close two sets of images are, pixel by pixel."""

import torch
from jaxtyping import Float, UInt8
from torch import Tensor


def psnr(images: UInt8[Tensor, "b c h w"], others: UInt8[Tensor, "b c h w"]) -> Float[Tensor, " b"]:
    """Peak signal-to-noise ratio of each pair in dB, for 8-bit pixels; infinite for equal ones.

    20 dB is a mean error of a tenth of the range, 40 dB of a hundredth. Report the mean over
    images, as is usual; it lies above the PSNR of the mean error.
    """
    error = (images.double() - others.double()).square().mean(dim=(1, 2, 3))
    return 10 * torch.log10(255**2 / error)
