"""Gradients equal diffusers' AutoencoderKL, the Gaussian its closed form; bad input is refused.

tests/parity shows that encoder and decoder equal those of diffusers.
"""

import copy
import dataclasses

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from autoencoder import PRESETS, Autoencoder, AutoencoderConfig, Posterior
from foundation.errors import UserError
from tests.helpers.autoencoders import make_diffusers

SMALL = AutoencoderConfig(block_out_channels=(16, 32, 32), norm_num_groups=8)


def test_gradients_equal_diffusers():
    torch.manual_seed(0)
    theirs, ours = make_diffusers(SMALL), Autoencoder(SMALL)
    ours.load_state_dict(theirs.state_dict())
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    ours.decode(ours.encode(images).mode()).square().sum().backward()
    theirs.decode(theirs.encode(images).latent_dist.mode()).sample.square().sum().backward()
    expected = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        bound = 1e-3 * expected[name].grad.norm() + 1e-3  # of sums over thousands of elements
        assert (parameter.grad - expected[name].grad).norm() < bound, name


def test_training_and_evaluation_compute_the_same():
    torch.manual_seed(0)
    autoencoder = Autoencoder(SMALL).double()
    images = torch.rand(1, 3, 16, 24, dtype=torch.float64) * 2 - 1
    results = []
    for mode in (True, False):
        posterior = autoencoder.train(mode).encode(images)
        results.append([posterior.mean, posterior.logvar, autoencoder.decode(posterior.mean)])
    torch.testing.assert_close(*results, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_have_the_keys_and_shapes_of_diffusers(name):
    config = PRESETS[name]
    with torch.device("meta"):
        ours, theirs = Autoencoder(config), make_diffusers(config)
    shapes = {key: tuple(value.shape) for key, value in ours.state_dict().items()}
    assert shapes == {key: tuple(value.shape) for key, value in theirs.state_dict().items()}
    if name == "sd15":
        assert sum(p.numel() for p in ours.parameters()) == 83_653_863


def test_kl_is_the_closed_form():
    torch.manual_seed(0)
    posterior = Posterior(torch.randn(3, 4, 2, 2), torch.randn(3, 4, 2, 2))
    expected = kl_divergence(Normal(posterior.mean, posterior.std), Normal(0.0, 1.0))
    torch.testing.assert_close(posterior.kl(), expected.sum(dim=(1, 2, 3)))


def test_samples_have_the_posterior_moments():
    mean, logvar = torch.full((1, 4, 150, 150), 2.0), torch.full((1, 4, 150, 150), -1.0)
    sample = Posterior(mean, logvar).sample(torch.Generator().manual_seed(0))
    std = torch.tensor(-0.5).exp().item()
    assert sample.mean().item() == pytest.approx(2, abs=4 * std / 300)  # four standard errors
    assert sample.std().item() == pytest.approx(std, rel=4 / 300 / 2**0.5)


def test_sample_is_differentiable_and_repeats_with_its_generator():
    mean = torch.zeros(1, 4, 2, 2, requires_grad=True)
    logvar = torch.zeros(1, 4, 2, 2, requires_grad=True)
    posterior = Posterior(mean, logvar)
    sample = posterior.sample(torch.Generator().manual_seed(5))
    assert torch.equal(sample, posterior.sample(torch.Generator().manual_seed(5)))
    sample.sum().backward()
    assert (mean.grad == 1).all()
    torch.testing.assert_close(logvar.grad, 0.5 * sample.detach())  # d std = std / 2 at std 1


def test_scaled_posterior_is_that_of_the_scaled_latents():
    posterior = Posterior(torch.randn(1, 4, 2, 2), torch.randn(1, 4, 2, 2))
    scale, shift = torch.rand(4, 1, 1) + 0.1, torch.randn(4, 1, 1)
    scaled = posterior.scaled(scale, shift)
    noise = torch.Generator().manual_seed(0)
    expected = (posterior.sample(noise) - shift) * scale
    torch.testing.assert_close(scaled.sample(noise.manual_seed(0)), expected)


@pytest.fixture(scope="module")
def tiny() -> Autoencoder:
    torch.manual_seed(0)
    return Autoencoder(PRESETS["tiny-32"])


@pytest.mark.parametrize(
    ("images", "numbers"),
    [
        (torch.zeros(1, 3, 33, 32), r"33x32.*\b4\b.*32x32"),  # the size that would fit
        (torch.zeros(1, 1, 32, 32), r"\b1\b.*\b3\b"),  # channels
        (torch.full((1, 3, 32, 32), 255.0), r"\[-1, 1\].*255"),
        (torch.full((1, 3, 32, 32), torch.nan), r"\[-1, 1\].*nan"),
    ],
)
def test_bad_images_are_refused_with_numbers(tiny, images, numbers):
    with pytest.raises(UserError, match=numbers):
        tiny.encode(images)


def test_moments_in_place_of_latents_are_refused(tiny):
    with pytest.raises(UserError, match=r"\b8\b.*\b4\b.*posterior\.sample"):
        tiny.decode(torch.zeros(1, 8, 4, 4))


def test_a_half_precision_network_takes_and_returns_float32(tiny):
    half = copy.deepcopy(tiny).bfloat16()
    images = torch.zeros(1, 3, 16, 16)
    posterior = half.encode(images)
    assert posterior.mean.dtype == torch.float32
    assert half.decode(posterior.mode()).dtype == torch.float32


def test_groups_that_do_not_divide_are_refused():
    with pytest.raises(UserError, match=r"20.*norm_num_groups=8"):
        AutoencoderConfig(block_out_channels=(16, 20), norm_num_groups=8)


@pytest.mark.parametrize(
    "change",
    [
        {"latents_mean": (0.0,) * 4},  # without latents_std
        {"latents_std": (1.0,) * 4},
        {"latents_mean": (0.0,) * 4, "latents_std": (1.0,) * 4, "shift_factor": 0.1},
        {"latents_mean": (0.0,) * 3, "latents_std": (1.0,) * 4},  # one too few
        {"latents_mean": (0.0,) * 4, "latents_std": (1.0, 1.0, 0.0, 1.0)},  # not positive
    ],
)
def test_ambiguous_latent_statistics_are_refused(change):
    with pytest.raises(UserError, match=r"latents_mean=.* latents_std="):
        dataclasses.replace(PRESETS["tiny-32"], **change)


def test_config_can_be_varied():
    gray = dataclasses.replace(PRESETS["tiny-32"], in_channels=1, out_channels=1)
    images = torch.zeros(1, 1, 8, 8)
    reconstructions, posterior = Autoencoder(gray)(images, torch.zeros(1, 4, 2, 2))
    assert reconstructions.shape == images.shape
    assert posterior.mean.shape == (1, 4, 2, 2)


def test_compiled_features_are_used(tiny):
    """`compile_for_training` replaces what the decoder calls; its state_dict keeps its keys."""
    decoder = copy.deepcopy(tiny).decoder
    decoder.compiled_features = lambda latents: 2 * decoder.features(latents)
    latents = torch.randn(1, 4, 2, 2)
    expected = decoder.conv_out(2 * decoder.features(latents))
    assert torch.equal(decoder(latents), expected)
    assert decoder.state_dict().keys() == tiny.decoder.state_dict().keys()


@pytest.mark.parametrize("factor", [1, 2, 4, 8, 16, 32, 64])
def test_a_factor_is_the_ratio_of_sides(factor):
    config = dataclasses.replace(PRESETS["tiny-32"], latent_channels=3).with_factor(factor)
    with torch.device("meta"):
        autoencoder = Autoencoder(config)
        posterior = autoencoder.encode(torch.zeros(1, 3, 64, 128), check=False)
        decoded = autoencoder.decode(posterior.mean, check=False)
    assert autoencoder.factor == factor
    assert posterior.mean.shape == (1, 3, 64 // factor, 128 // factor)
    assert decoded.shape == (1, 3, 64, 128)


def test_a_factor_keeps_the_widths_of_the_first_levels():
    config = PRESETS["tiny-32"]
    assert config.with_factor(4) == config
    assert config.with_factor(2).block_out_channels == (16, 32)
    assert config.with_factor(16).block_out_channels == (16, 32, 32, 32, 32)


@pytest.mark.parametrize("factor", [-4, 0, 3, 12, 128])
def test_factors_that_are_no_power_of_2_are_refused(factor):
    with pytest.raises(UserError, match=str(factor)):
        PRESETS["tiny-32"].with_factor(factor)
