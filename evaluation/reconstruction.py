"""Similarity of images and their reconstructions, pixel by pixel: PSNR and SSIM."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Real
from torch import Tensor

from foundation.errors import UserError

SSIM_WINDOW = 11  # pixels across the Gaussian window
SSIM_STD = 1.5  # standard deviation of the window in pixels


def psnr(images: Real[Tensor, "b c h w"], others: Real[Tensor, "b c h w"]) -> Float[Tensor, " b"]:
    """Return the peak signal-to-noise ratio of each pair in dB; infinite for equal images.

    An error of a tenth of the range everywhere gives 20 dB, of a hundredth 40 dB. Report the mean
    over images, as is usual; it lies above the PSNR of the mean error.

    images, others: 8-bit pixels, or floating-point numbers in [-1, 1].
    """
    span = 2 if images.is_floating_point() else 255
    error = (images.double() - others.double()).square().mean(dim=(1, 2, 3))
    return 10 * torch.log10(span**2 / error)


def ssim(images: Real[Tensor, "b c h w"], others: Real[Tensor, "b c h w"]) -> Float[Tensor, " b"]:
    """Return the structural similarity of each pair: 1 for equal images, 0 for unrelated ones.

    Wang et al. 2004, "Image quality assessment: from error visibility to structural similarity",
    eq. 13, with its constants and window, averaged over channels and over the positions at which
    the whole window lies inside the image.

    images, others: 8-bit pixels, or floating-point numbers in [-1, 1].

    Raises:
        UserError: the images are smaller than the window.
    """
    if min(images.shape[-2:]) < SSIM_WINDOW:
        raise UserError(
            f"SSIM needs images of at least {SSIM_WINDOW} pixels, got {tuple(images.shape[-2:])}."
        )
    x, y = (pixels.double().flatten(0, 1)[:, None] for pixels in (images, others))
    if images.is_floating_point():
        x, y = x + 1, y + 1  # the formula wants a range that begins at 0
    moments = gaussian_means(torch.cat([x, y, x * x, y * y, x * y], dim=1))
    mean_x, mean_y, square_x, square_y, product = moments.unbind(dim=1)
    span = 2 if images.is_floating_point() else 255
    c1, c2 = (0.01 * span) ** 2, (0.03 * span) ** 2
    covariance = product - mean_x * mean_y
    variances = square_x - mean_x**2 + square_y - mean_y**2
    similarity = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    similarity = similarity / ((mean_x**2 + mean_y**2 + c1) * (variances + c2))
    return similarity.mean(dim=(1, 2)).unflatten(0, images.shape[:2]).mean(dim=1)


def gaussian_means(maps: Float[Tensor, "n m h w"]) -> Float[Tensor, "n m h_out w_out"]:
    """Return the Gaussian-weighted mean around each position at which the window fits."""
    offsets = torch.arange(SSIM_WINDOW, dtype=maps.dtype, device=maps.device) - SSIM_WINDOW // 2
    weights = torch.exp(-offsets.square() / (2 * SSIM_STD**2))
    weights = (weights / weights.sum()).expand(maps.shape[1], 1, -1)
    columns = F.conv2d(maps, weights[:, :, None], groups=maps.shape[1])
    return F.conv2d(columns, weights[..., None], groups=maps.shape[1])
