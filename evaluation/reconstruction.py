"""How close two sets of images are, pixel by pixel."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Real
from torch import Tensor

from foundation.errors import UserError


def psnr(images: Real[Tensor, "b c h w"], others: Real[Tensor, "b c h w"]) -> Float[Tensor, " b"]:
    """Peak signal-to-noise ratio of each pair in dB; infinite for equal ones.

    The range is that of 8-bit pixels, or for floating-point numbers [-1, 1].

    20 dB is a mean error of a tenth of the range, 40 dB of a hundredth. Report the mean over
    images, as is usual; it lies above the PSNR of the mean error.
    """
    span = 2 if images.is_floating_point() else 255
    error = (images.double() - others.double()).square().mean(dim=(1, 2, 3))
    return 10 * torch.log10(span**2 / error)


WINDOW = 11  # pixels across the Gaussian, whose standard deviation is 1.5


def ssim(images: Real[Tensor, "b c h w"], others: Real[Tensor, "b c h w"]) -> Float[Tensor, " b"]:
    """Structural similarity of each pair, 8-bit or in [-1, 1]: 1 for equal ones, 0 for unrelated.

    Wang et al. 2004, "Image quality assessment: from error visibility to structural similarity",
    eq. 13, with its constants and window, averaged over channels and over the places at which the
    whole window lies inside the image.
    """
    if min(images.shape[-2:]) < WINDOW:
        raise UserError(
            f"SSIM needs images of at least {WINDOW} pixels, got {tuple(images.shape[-2:])}."
        )
    x, y = (pixels.double().flatten(0, 1)[:, None] for pixels in (images, others))
    if images.is_floating_point():
        x, y = x + 1, y + 1  # from 0, as the formula means it
    moments = blurred(torch.cat([x, y, x * x, y * y, x * y], dim=1))
    mean_x, mean_y, square_x, square_y, product = moments.unbind(dim=1)
    span = 2 if images.is_floating_point() else 255
    c1, c2 = (0.01 * span) ** 2, (0.03 * span) ** 2
    covariance = product - mean_x * mean_y
    variances = square_x - mean_x**2 + square_y - mean_y**2
    similar = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    similar = similar / ((mean_x**2 + mean_y**2 + c1) * (variances + c2))
    return similar.mean(dim=(1, 2)).unflatten(0, images.shape[:2]).mean(dim=1)


def blurred(maps: Float[Tensor, "n m h w"]) -> Float[Tensor, "n m _ _"]:
    """Gaussian means of every map; smaller by the window."""
    places = torch.arange(WINDOW, dtype=maps.dtype, device=maps.device) - WINDOW // 2
    weights = torch.exp(-places.square() / (2 * 1.5**2))
    weights = (weights / weights.sum()).expand(maps.shape[1], 1, -1)
    along = F.conv2d(maps, weights[:, :, None], groups=maps.shape[1])
    return F.conv2d(along, weights[..., None], groups=maps.shape[1])
