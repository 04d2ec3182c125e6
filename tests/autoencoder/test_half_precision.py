"""Half precision overflows in the activations: computed again in float32, and never kept silent."""

import copy

import pytest
import torch

from autoencoder import PRESETS, Autoencoder
from autoencoder.half_precision import Float16Warning, fits_float16, largest_activation

LARGE = 3e5  # factor of a convolution before a normalization, which takes it out again


@pytest.fixture(scope="module")
def autoencoder() -> Autoencoder:
    """Its weights fit float16, its activations do not, and float32 does not mind."""
    torch.manual_seed(0)
    made = Autoencoder(PRESETS["tiny-32"]).eval().requires_grad_(False)
    for coder in (made.encoder, made.decoder):
        coder.conv_in.weight *= LARGE
        coder.conv_out.weight /= 8  # keeps the outputs about as large as usual
    return made


IMAGES = torch.linspace(-1, 1, 3 * 16 * 16).view(1, 3, 16, 16)
LATENTS = torch.linspace(-2, 2, 4 * 4 * 4).view(1, 4, 4, 4)


def test_what_overflows_in_float16_is_computed_again(autoencoder):
    half = copy.deepcopy(autoencoder).half()
    weights = copy.deepcopy(half.state_dict())
    assert all(weight.isfinite().all() for weight in weights.values())
    assert not half.pixels(LATENTS).isfinite().all()
    with pytest.warns(Float16Warning, match="decoding of the latents .* again in float32"):
        images = half.decode(LATENTS)
    expected = copy.deepcopy(half).float()
    torch.testing.assert_close(images, expected.decode(LATENTS), rtol=1e-3, atol=1e-3)
    with pytest.warns(Float16Warning, match="encoding of the images"):
        posterior = half.encode(IMAGES)
    torch.testing.assert_close(posterior.mean, expected.encode(IMAGES).mean, rtol=1e-3, atol=1e-3)
    for name, weight in half.state_dict().items():
        assert weight.dtype == torch.float16 and torch.equal(weight, weights[name])


def test_training_does_not_wait_for_the_check(autoencoder):
    half = copy.deepcopy(autoencoder).half()
    assert not half.decode(LATENTS, check=False).isfinite().all()


def test_a_network_that_is_broken_is_an_error(autoencoder):
    broken = copy.deepcopy(autoencoder)
    broken.decoder.conv_out.bias.fill_(torch.inf)
    with pytest.raises(FloatingPointError, match="weights are broken"):
        broken.decode(LATENTS)
    with pytest.raises(FloatingPointError, match="what was given holds NaN"):
        autoencoder.decode(torch.full_like(LATENTS, torch.nan))


def test_the_largest_activation_is_that_of_a_layer_inside(autoencoder):
    first = autoencoder.decoder.conv_in(autoencoder.post_quant_conv(LATENTS)).abs().max().item()
    found = largest_activation(autoencoder, lambda: autoencoder.decode(LATENTS))
    assert found >= first > 65504 and not fits_float16(found)
    assert not autoencoder.decoder.conv_in._forward_hooks
    usual = Autoencoder(PRESETS["tiny-32"])
    assert fits_float16(largest_activation(usual, lambda: usual.decode(LATENTS)))
