import pytest
import torch

from evaluation.reconstruction import psnr, ssim


def test_psnr_of_a_known_error():
    """A difference of one gray level everywhere is 20 log10(255) dB."""
    image = torch.full((2, 3, 4, 4), 100, dtype=torch.uint8)
    other = image.clone()
    other[1] += 1
    exact, off_by_one = psnr(image, other).tolist()
    assert exact == float("inf")
    assert off_by_one == pytest.approx(48.1308, abs=1e-3)


@pytest.mark.parametrize("channels", [1, 3])
def test_ssim_is_that_of_scikit_image(channels):
    from skimage.metrics import structural_similarity

    random = torch.Generator().manual_seed(0)
    smooth = torch.rand(2, channels, 6, 6, generator=random)
    smooth = torch.nn.functional.interpolate(smooth, (32, 24), mode="bilinear")
    noise = 0.1 * torch.randn(smooth.shape, generator=random)
    images, others = (
        (255 * x.clamp(0, 1)).round().to(torch.uint8) for x in (smooth, smooth + noise)
    )
    expected = [
        structural_similarity(
            a.numpy(),
            b.numpy(),
            channel_axis=0,
            data_range=255,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
        for a, b in zip(images, others, strict=True)
    ]
    found = ssim(images, others)
    assert found.tolist() == pytest.approx(expected, abs=1e-6)
    assert found.max() < 0.95 and torch.equal(ssim(images, images), torch.ones(2).double())


def test_ssim_of_images_smaller_than_its_window_is_refused():
    tiny = torch.zeros(1, 3, 10, 32, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"at least 11 pixels, got \(10, 32\)"):
        ssim(tiny, tiny)
