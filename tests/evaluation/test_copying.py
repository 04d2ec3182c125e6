"""Nearest training images, and the test for copies, against scipy and simple cases."""

import numpy as np
import pytest
import torch
from scipy.stats import mannwhitneyu

from evaluation.copying import copying_score, copying_verdict, nearest
from foundation.errors import NotFiniteError, UserError


def test_the_nearest_training_image_is_found(monkeypatch):
    monkeypatch.setattr("evaluation.distances.ROWS", 3)
    training = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    wanted = torch.tensor([7, 0, 49, 7, 12, 30, 31])
    found = nearest(training[wanted] + 1e-3, training)
    assert torch.equal(found.indices, wanted)
    torch.testing.assert_close(found.distances, torch.full((7,), 2e-3).double(), rtol=1e-3, atol=0)


@pytest.mark.parametrize("shift", [-0.5, 0.0, 0.3])
def test_the_score_is_that_of_mann_and_whitney(shift):
    random = np.random.default_rng(0)
    samples = torch.from_numpy(random.normal(size=200).round(2) + shift)  # with ties
    held_out = torch.from_numpy(random.normal(size=80).round(2))
    u = mannwhitneyu(samples.numpy(), held_out.numpy()).statistic
    expected = (u - 200 * 80 / 2) / (200 * 80 * 281 / 12) ** 0.5
    assert copying_score(samples, held_out) == pytest.approx(expected)


def test_copies_are_found_and_others_are_not():
    random = torch.Generator().manual_seed(0)
    training = torch.randn(500, 8, generator=random)
    held_out = nearest(torch.randn(100, 8, generator=random), training).distances

    def verdict(samples: torch.Tensor) -> str:
        return copying_verdict(copying_score(nearest(samples, training).distances, held_out))

    copies = training[:100] + 0.05 * torch.randn(100, 8, generator=random)
    assert "the model copies" in verdict(copies)
    assert "as near" in verdict(torch.randn(100, 8, generator=random))
    assert "farther" in verdict(torch.randn(100, 8, generator=random) + 4)


def test_bad_features_are_refused():
    features = torch.randn(5, 4)
    with pytest.raises(UserError, match=r"\(0, 4\)"):
        nearest(features, features[:0])
    with pytest.raises(UserError, match=r"\(5, 3\).* 4 numbers"):
        nearest(features, features[:, :3])
    features[3, 1] = torch.nan
    with pytest.raises(NotFiniteError, match="image 3"):
        nearest(features, torch.randn(5, 4))
    with pytest.raises(UserError, match="0 samples"):
        copying_score(torch.zeros(0), torch.zeros(3))
