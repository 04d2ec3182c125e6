"""Results that overflow in half precision are computed again in float32, with a warning."""

import copy

import pytest
import torch

from autoencoder import PRESETS, Autoencoder
from autoencoder.half_precision import Float16Warning, fits_float16, largest_activation
from foundation.errors import NotFiniteError

LARGE = 3e5  # factor of a convolution before a normalization, which divides by it again


@pytest.fixture(scope="module")
def autoencoder() -> Autoencoder:
    """Make an autoencoder whose weights fit float16 and whose activations need float32."""
    torch.manual_seed(0)
    made = Autoencoder(PRESETS["tiny-32"]).eval().requires_grad_(False)
    for network in (made.encoder, made.decoder):
        network.conv_in.weight *= LARGE
        network.conv_out.weight /= 8  # keeps the outputs about as large as usual
    return made


IMAGES = torch.linspace(-1, 1, 3 * 16 * 16).view(1, 3, 16, 16)
LATENTS = torch.linspace(-2, 2, 4 * 4 * 4).view(1, 4, 4, 4)


def test_what_overflows_in_float16_is_computed_again(autoencoder):
    half = copy.deepcopy(autoencoder).half()
    weights = copy.deepcopy(half.state_dict())
    assert all(weight.isfinite().all() for weight in weights.values())
    assert not half.pixels(LATENTS).isfinite().all()
    with pytest.warns(Float16Warning, match="decoding.*float32"):
        images = half.decode(LATENTS)
    expected = copy.deepcopy(half).float()
    torch.testing.assert_close(images, expected.decode(LATENTS), rtol=1e-3, atol=1e-3)
    with pytest.warns(Float16Warning, match="encoding"):
        posterior = half.encode(IMAGES)
    torch.testing.assert_close(posterior.mean, expected.encode(IMAGES).mean, rtol=1e-3, atol=1e-3)
    for name, weight in half.state_dict().items():
        assert weight.dtype == torch.float16 and torch.equal(weight, weights[name])


def test_training_does_not_wait_for_the_check(autoencoder):
    half = copy.deepcopy(autoencoder).half()
    assert not half.decode(LATENTS, check=False).isfinite().all()


def test_broken_weights_and_broken_input_are_told_apart(autoencoder):
    broken = copy.deepcopy(autoencoder)
    broken.decoder.conv_out.bias.fill_(torch.inf)
    with pytest.raises(NotFiniteError, match="weights"):
        broken.decode(LATENTS)
    with pytest.raises(NotFiniteError, match="input"):
        autoencoder.decode(torch.full_like(LATENTS, torch.nan))


def test_the_largest_activation_may_be_that_of_an_inner_layer(autoencoder):
    first = autoencoder.decoder.conv_in(autoencoder.post_quant_conv(LATENTS)).abs().max().item()
    measured = largest_activation(autoencoder, lambda: autoencoder.decode(LATENTS))
    assert measured >= first > 65504 and not fits_float16(measured)
    assert not autoencoder.decoder.conv_in._forward_hooks
    usual = Autoencoder(PRESETS["tiny-32"])
    assert fits_float16(largest_activation(usual, lambda: usual.decode(LATENTS)))
