"""Statistics of latent channels against samples that are drawn and against Gaussians; dead ones."""

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from evaluation.latents import describe_channels, image_moments, latent_channels


def random_posterior() -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    mean = torch.randn(4, 2, 16, 16, generator=random) ** 3 / 3 + 0.5
    return mean, torch.randn(4, 2, 16, 16, generator=random) - 2


def test_moments_are_those_of_drawn_latents():
    mean, logvar = random_posterior()
    noise = torch.randn(400, *mean.shape, generator=torch.Generator().manual_seed(1))
    drawn = (mean + torch.exp(0.5 * logvar) * noise).double().transpose(0, 2).flatten(1)
    for found, z in zip(latent_channels(image_moments(mean, logvar)), drawn, strict=True):
        assert found.mean == pytest.approx(z.mean().item(), abs=0.01)
        assert found.std == pytest.approx(z.std().item(), rel=0.01)
        fourth = ((z - z.mean()) / z.std()).pow(4).mean().item()
        assert found.kurtosis == pytest.approx(fourth, rel=0.02)


def test_kl_is_that_of_torch():
    mean, logvar = random_posterior()
    posterior = Normal(mean.double(), logvar.double().div(2).exp())
    expected = kl_divergence(posterior, Normal(0.0, 1.0)).mean(dim=(0, 2, 3))
    for found, kl in zip(latent_channels(image_moments(mean, logvar)), expected, strict=True):
        assert found.kl == pytest.approx(kl.item(), rel=1e-9)


def test_a_channel_of_noise_is_normal_and_has_no_signal():
    nothing = torch.zeros(2, 1, 8, 8)
    (found,) = latent_channels(image_moments(nothing + 2, nothing))
    assert (found.mean, found.std, found.kurtosis) == pytest.approx((2, 1, 3))
    assert found.signal == 0 and found.kl == pytest.approx(0.5 * 4)


def four_channels(count: int = 8) -> torch.Tensor:
    """Return moments of channels that carry: much; a constant far from 0; nothing; a little."""
    random = torch.Generator().manual_seed(0)
    mean = torch.randn(count, 4, 6, 6, generator=random)
    mean *= torch.tensor([2.0, 0.0, 0.0, 0.3])[:, None, None]
    mean[:, 1] = 5.0
    std = torch.tensor([0.1, 0.01, 1.0, 0.9])[:, None, None].expand_as(mean)
    return image_moments(mean, 2 * std.log())


def test_channels_without_information_are_named_whatever_their_kl():
    channels = latent_channels(four_channels())
    assert [channel.is_dead for channel in channels] == [False, True, True, False]
    assert channels[1].kl > channels[0].kl > 0.1 > channels[2].kl
    text = describe_channels(channels)
    assert "2 of 4 latent channels carry no information (1, 2)" in text
    assert "no information" not in describe_channels(channels[:1])
