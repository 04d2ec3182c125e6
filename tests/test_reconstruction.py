import pytest
import torch

from evaluation.reconstruction import psnr


def test_psnr_of_a_known_error():
    """A difference of one gray level everywhere is 20 log10(255) dB."""
    image = torch.full((2, 3, 4, 4), 100, dtype=torch.uint8)
    other = image.clone()
    other[1] += 1
    exact, off_by_one = psnr(image, other).tolist()
    assert exact == float("inf")
    assert off_by_one == pytest.approx(48.1308, abs=1e-3)
