"""Similarity of images and their reconstructions, pixel by pixel: PSNR and SSIM."""

import torch
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
    the whole window lies inside the image. Computed by torchmetrics.

    images, others: 8-bit pixels, or floating-point numbers in [-1, 1].

    Raises:
        UserError: the images are smaller than the window.
    """
    if min(images.shape[-2:]) < SSIM_WINDOW:
        raise UserError(
            f"SSIM needs images of at least {SSIM_WINDOW} pixels, got {tuple(images.shape[-2:])}."
        )
    from torchmetrics.functional.image import structural_similarity_index_measure  # loads slowly

    span = 2.0 if images.is_floating_point() else 255.0
    # The formula wants a range that begins at 0.
    x, y = (
        pixels.double() + 1 if pixels.is_floating_point() else pixels.double()
        for pixels in (images, others)
    )
    _, maps = structural_similarity_index_measure(
        x, y, sigma=SSIM_STD, data_range=span, reduction="none", return_full_image=True
    )
    # Its own mean also counts positions at the border, around which it mirrors the image.
    border = SSIM_WINDOW // 2
    return maps[..., border:-border, border:-border].mean(dim=(1, 2, 3))
