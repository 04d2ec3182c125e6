"""Images without a network: what must stay as it is, and bits that can be counted."""

import io

import pytest
import torch
from PIL import Image

from evaluation.baselines import (
    best_jpeg,
    bicubic_round_trip,
    encode_jpeg,
    jpeg_at,
    scan_bits,
)
from evaluation.reconstruction import psnr
from foundation.errors import UserError


def smooth(n: int, channels: int, side: int) -> torch.Tensor:
    small = torch.rand(n, channels, 4, 4, generator=torch.Generator().manual_seed(0))
    large = torch.nn.functional.interpolate(small, (side, side), mode="bicubic").clamp(0, 1)
    return (255 * large).round().to(torch.uint8)


def test_bicubic_keeps_what_is_constant_and_loses_detail_with_the_factor():
    flat = torch.full((1, 3, 16, 16), 77, dtype=torch.uint8)
    assert torch.equal(bicubic_round_trip(flat, 4), flat)
    images = smooth(2, 3, 32)
    assert torch.equal(bicubic_round_trip(images, 1), images)
    values = [psnr(images, bicubic_round_trip(images, factor)).mean() for factor in (2, 8)]
    assert values[0] > 35 > values[1] + 5


@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_uses_the_bits_that_it_has(channels):
    images = smooth(3, channels, 32)
    few, many = jpeg_at(images, 1200), jpeg_at(images, 4000)
    assert few.fits.all() and (few.size <= 1200).all() and (many.size <= 4000).all()
    assert (psnr(images, few.pixels) < psnr(images, many.pixels)).all()
    none = jpeg_at(images, 8)
    assert not none.fits.any() and (none.size > 8).all()


def test_jpeg_takes_the_best_quality_that_fits():
    (image,) = smooth(1, 3, 32)
    sizes = [scan_bits(encode_jpeg(image, quality)) for quality in range(1, 96)]
    decoded, bits = best_jpeg(image, sizes[49])
    best = max(quality for quality in range(1, 96) if sizes[quality - 1] <= sizes[49])
    assert bits == sizes[best - 1] and 50 <= best < 95
    expected = Image.open(io.BytesIO(encode_jpeg(image, best)))
    assert Image.fromarray(decoded.permute(1, 2, 0).numpy()).tobytes() == expected.tobytes()


def test_the_bits_of_a_jpeg_begin_after_its_headers():
    """An even image needs a few bits in each block of 8x8, whatever the quality."""
    flat = torch.full((1, 64, 64), 128, dtype=torch.uint8)
    content = encode_jpeg(flat, 90)
    assert 64 <= scan_bits(content) <= 64 * 6 < 8 * len(content)


def test_jpeg_of_other_channels_is_refused():
    with pytest.raises(UserError, match="1 or 3 channels, not of 4"):
        jpeg_at(torch.zeros(1, 4, 8, 8, dtype=torch.uint8), 100)
