"""Folded latents have zero mean and unit variance."""

import dataclasses

import pytest
import torch

from autoencoder import PRESETS, Autoencoder, AutoencoderConfig
from autoencoder.training.latent_statistics import (
    LatentStatistics,
    fold_config_scale,
    fold_statistics,
    measure_statistics,
)
from foundation.errors import UserError
from tests.helpers.autoencoders import randomize

TINY = PRESETS["tiny-32"]
CONFIGS = {
    "ours": TINY,
    "foreign": dataclasses.replace(TINY, scaling_factor=0.3611, shift_factor=0.1159),
    "per channel": dataclasses.replace(
        TINY,
        scaling_factor=0.5,
        latents_mean=(-1.6574, 1.886, -1.383, 2.5155),
        latents_std=(8.4927, 5.9022, 6.5498, 5.2299),
    ),
    "no-1x1": dataclasses.replace(TINY, use_quant_conv=False, use_post_quant_conv=False),
}


def make(config: AutoencoderConfig) -> Autoencoder:
    """Make an autoencoder with a wide posterior, and latents far from zero mean, unit variance."""
    torch.manual_seed(0)
    autoencoder = Autoencoder(config).eval()
    randomize(autoencoder)
    with torch.no_grad():
        if config.use_quant_conv:  # otherwise log-variances would vary by hundreds, too
            autoencoder.quant_conv.weight[4:, :4] = 0
            autoencoder.quant_conv.bias[4:] = torch.tensor([1.0, 4, 0, 3])
        autoencoder.encoder.conv_out.weight[:4] *= 30
        autoencoder.encoder.conv_out.bias += torch.tensor([-9.0, 3, 0, 1, 0, 0, 0, 0])
    return autoencoder


def batches(count: int = 4) -> list[torch.Tensor]:
    noise = torch.Generator().manual_seed(1)
    return [torch.rand(8, 3, 32, 32, generator=noise) * 2 - 1 for _ in range(count)]


@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_folded_latents_are_standardized_and_reconstructions_unchanged(name, tmp_path):
    from diffusers import AutoencoderKL

    autoencoder = make(CONFIGS[name])
    statistics = measure_statistics(autoencoder, batches())
    folded = fold_statistics(autoencoder, statistics)
    assert not folded.config.scaled

    noise = torch.Generator().manual_seed(2)
    samples = torch.cat([folded.encode(x).sample(noise) for x in batches()])
    spread = 5 / samples[:, 0].numel() ** 0.5  # five standard errors
    assert samples.mean(dim=(0, 2, 3)).abs().max() < spread
    assert (samples.std(dim=(0, 2, 3)) - 1).abs().max() < spread
    again = measure_statistics(folded, batches())
    assert torch.tensor(again.mean).abs().max() < 1e-5
    assert (torch.tensor(again.std) - 1).abs().max() < 1e-5

    images = batches(1)[0]
    before, after = (model.encode(images) for model in (autoencoder, folded))
    expected = autoencoder.decode(before.mode())
    bound = 1e-5 * expected.std() * 10
    assert (folded.decode(after.mode()) - expected).abs().max() < bound
    drawn = [p.sample(torch.Generator().manual_seed(3)) for p in (before, after)]
    difference = folded.decode(drawn[1]) - autoencoder.decode(drawn[0])
    assert difference.abs().max() < bound

    folded.save(tmp_path)
    theirs = AutoencoderKL.from_pretrained(tmp_path)
    latents = theirs.encode(images).latent_dist.mode() * theirs.config.scaling_factor
    torch.testing.assert_close(latents, after.mode(), rtol=1e-4, atol=1e-5)
    assert (theirs.decode(after.mode()).sample - expected).abs().max() < bound


def test_the_variance_includes_the_width_of_the_posterior():
    autoencoder = make(TINY)
    with torch.no_grad():
        posteriors = [autoencoder.encode(images) for images in batches()]
    noise = torch.Generator().manual_seed(0)
    samples = torch.cat([p.sample(noise) for p in posteriors for _ in range(50)])
    means = torch.cat([p.mean for p in posteriors])
    statistics = measure_statistics(autoencoder, batches())
    std = samples.double().std(dim=(0, 2, 3))
    torch.testing.assert_close(torch.tensor(statistics.std).double(), std, rtol=1e-2, atol=0)
    assert (std > 1.05 * means.std(dim=(0, 2, 3))).any()  # here the width of the posterior matters
    assert statistics.images == 32


def test_useless_latents_are_refused():
    autoencoder = make(TINY)
    with pytest.raises(UserError):
        measure_statistics(autoencoder, [])
    with torch.no_grad():
        autoencoder.quant_conv.weight[1] = torch.nan
    with pytest.raises(UserError, match=r"channel 1 .*nan"):
        measure_statistics(autoencoder, batches())


def test_folding_leaves_the_original_alone():
    autoencoder = make(TINY).double()
    before = {key: value.clone() for key, value in autoencoder.state_dict().items()}
    fold_statistics(autoencoder, LatentStatistics((1.0,) * 4, (2.0,) * 4, 1))
    assert all(torch.equal(before[key], v) for key, v in autoencoder.state_dict().items())


@pytest.mark.parametrize("name", ["foreign", "per channel"])
@torch.no_grad()
def test_a_foreign_scale_can_be_folded_in_without_changing_the_latents(name):
    foreign, ours = make(CONFIGS[name]), make(TINY)
    folded = fold_config_scale(foreign)
    assert not folded.config.scaled and fold_config_scale(ours) is ours
    images = batches(1)[0]
    for name in ("mean", "std"):
        before, after = (getattr(model.encode(images), name) for model in (foreign, folded))
        torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-4)
