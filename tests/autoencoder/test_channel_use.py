"""Which latent channels carry a picture."""

import pytest
import torch

from autoencoder.posterior import Posterior
from autoencoder.training.channel_use import channel_use


def posterior(count: int = 8) -> Posterior:
    """Channel 0 carries a lot, 1 is a constant far from 0, 2 is the prior, 3 a little."""
    random = torch.Generator().manual_seed(0)
    mean = torch.randn(count, 4, 6, 6, generator=random)
    mean *= torch.tensor([2.0, 0.0, 0.0, 0.3])[:, None, None]
    mean[:, 1] = 5.0
    std = torch.tensor([0.1, 0.01, 1.0, 0.9])[:, None, None].expand_as(mean)
    return Posterior(mean, 2 * std.log())


def test_the_kl_per_channel_adds_up_to_that_of_the_posterior():
    given = posterior()
    use = channel_use([given])
    assert sum(use.kl) * 36 == pytest.approx(given.kl().mean().item(), rel=1e-5)


def test_channels_without_a_picture_are_named_whatever_their_kl():
    use = channel_use([posterior()])
    assert use.dead == (1, 2) and use.kl[1] > use.kl[0] > 0.1 > use.kl[2]
    assert "1, 2 DEAD, of 4" in use.describe() and "--kl-weight" in use.describe()


def test_batches_count_by_their_images():
    whole = posterior(8)
    parts = [Posterior(whole.mean[a:b], whole.logvar[a:b]) for a, b in ((0, 3), (3, 8))]
    assert channel_use(parts).kl == pytest.approx(channel_use([whole]).kl)


def test_all_used():
    whole = posterior()
    use = channel_use([Posterior(whole.mean[:, :1], whole.logvar[:, :1])])
    assert use.describe() == "latent channels: all 1 are used"
