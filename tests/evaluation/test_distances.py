"""Distances against closed forms, and against the functions of the library."""

import numpy as np
import pytest
import torch
from torch_fidelity import metric_fid, metric_kid

from evaluation import distances
from foundation.errors import NotFiniteError, UserError


def normal(n: int, d: int, seed: int = 0, mean: float = 0.0, std: float = 1.0) -> torch.Tensor:
    random = torch.Generator().manual_seed(seed)
    return mean + std * torch.randn(n, d, generator=random)


def with_moments(features: torch.Tensor, mean: torch.Tensor, std: torch.Tensor) -> torch.Tensor:
    """The same rows, shifted, rotated and scaled to exactly this mean and diagonal covariance."""
    centered = features.double() - features.double().mean(dim=0)
    white = torch.linalg.solve_triangular(
        torch.linalg.cholesky(torch.cov(centered.T)), centered.T, upper=False
    ).T
    return mean + white * std


def test_frechet_distance_of_two_gaussians():
    """Diagonal covariances: |difference of means|^2 + sum of (difference of deviations)^2."""
    means = torch.tensor([0.0, 1.0, -2.0]), torch.tensor([0.5, 1.0, 2.0])
    stds = torch.tensor([1.0, 2.0, 0.5]), torch.tensor([1.5, 0.5, 0.5])
    x, y = (
        with_moments(normal(500, 3, seed), mean, std)
        for seed, (mean, std) in enumerate(zip(means, stds, strict=True))
    )
    expected = 0.25 + 16 + 0.25 + 2.25
    assert distances.frechet_value(x, y) == pytest.approx(expected, rel=1e-6)
    found = distances.gaussian_distance(
        *(part for some in (x, y) for part in (some.mean(dim=0), torch.cov(some.T)))
    )
    assert found.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("n", "d"), [(300, 8), (40, 100)])
def test_distance_of_a_set_to_itself_is_zero(n, d):
    x = normal(n, d)
    found = distances.frechet_distance(x, x, paired=True)
    assert abs(found.value) < 1e-5 * d and found.high < 1e-3
    assert distances.cmmd(x, x).value == pytest.approx(0, abs=1e-9)
    assert all(e.value == 1 for e in distances.precision_recall(x, x).values())
    assert distances.density_coverage(x, x)["coverage"].value == 1


def test_fid_and_kid_are_those_of_the_library():
    x, y = normal(60, 20), normal(70, 20, 1, 0.3, 1.2)
    statistics = [metric_fid.fid_features_to_statistics(z) for z in (x, y)]
    expected = metric_fid.fid_statistics_to_metric(*statistics, verbose=False)
    key = metric_fid.KEY_METRIC_FID
    assert distances.frechet_value(x, y) == pytest.approx(expected[key], rel=1e-3)
    expected = metric_kid.kid_features_to_metric(
        x, y, kid_subset_size=60, rng_seed=2020, verbose=False
    )
    key = metric_kid.KEY_METRIC_KID_MEAN
    assert distances.kernel_distance(x, y).value == pytest.approx(expected[key], rel=1e-3)


def test_kid_of_samples_of_one_distribution_is_about_zero():
    """Its interval holds 0 in about 95 of 100 cases; here are ten."""
    found = [distances.kernel_distance(normal(80, 6, k), normal(80, 6, 50 + k)) for k in range(10)]
    assert sum(e.low <= 0 <= e.high for e in found) >= 8
    assert abs(np.mean([e.value for e in found])) < 0.1
    assert distances.kernel_distance(normal(80, 6), normal(80, 6, 9, mean=1)).low > 0


def test_cmmd_of_two_points():
    """Unit vectors with a right angle between them are sqrt(2) apart."""
    x, y = torch.eye(2)[[0, 0, 0]], torch.eye(2)[[1, 1, 1]]
    expected = 1000 * 2 * (1 - np.exp(-2 / 200))
    assert distances.cmmd(5 * x, 3 * y).value == pytest.approx(expected, rel=1e-9)


def test_cmmd_is_the_mean_over_all_pairs():
    x, y = (z / z.norm(dim=1, keepdim=True) for z in (normal(9, 5), normal(12, 5, 1, mean=0.5)))

    def kernel(a: torch.Tensor, b: torch.Tensor) -> float:
        return np.mean([[np.exp(-(float((p - q).norm()) ** 2) / 200) for q in b] for p in a])

    expected = 1000 * (kernel(x, x) + kernel(y, y) - 2 * kernel(x, y))
    assert distances.cmmd(x, y).value == pytest.approx(expected, rel=1e-4)


def test_precision_and_recall_are_those_of_the_definition():
    """A point counts if it lies within the third neighbor of any point of the other set."""
    samples, real = normal(40, 5, 2, mean=0.7, std=0.8), normal(50, 5, 3)

    def share_near(points: torch.Tensor, others: torch.Tensor) -> float:
        radii = [sorted(float((p - q).norm()) for q in others)[3] for p in others]
        near = [
            any((p - q).norm() <= r for q, r in zip(others, radii, strict=True)) for p in points
        ]
        return np.mean(near)

    found = distances.precision_recall(samples, real)
    assert found["precision"].value == pytest.approx(share_near(samples, real))
    assert found["recall"].value == pytest.approx(share_near(real, samples))
    assert 0 < found["recall"].value < found["precision"].value < 1


def test_coverage_counted_by_hand():
    """Eight points on a line; two samples lie among the left ones, and one far away."""
    line = torch.arange(8.0)[:, None]
    found = distances.density_coverage(torch.tensor([[0.5], [1.5], [90.0]] * 3), line)
    # The fifth neighbors of 0 ... 7 are 5, 4, 3, 3, 3, 3, 4, 5 away.
    assert found["density"].value == pytest.approx((4 + 5 + 0) / 3 / 5)
    assert found["coverage"].value == 5 / 8


def test_precision_tells_samples_far_away():
    samples = torch.cat([normal(30, 4), normal(10, 4, mean=50)])
    found = distances.precision_recall(samples, normal(40, 4))
    assert found["precision"].value == 0.75 and found["recall"].value > 0.6
    assert found["precision"].low < 0.75 < found["precision"].high


def test_inception_score_of_certain_and_of_equal_classes():
    certain = 1000 * torch.eye(4).repeat(250, 1)
    assert distances.inception_score(certain).value == pytest.approx(4, rel=0.05)
    assert distances.inception_score(torch.zeros(100, 4)).value == pytest.approx(1)
    # Two kinds of images, each equally often: exp(entropy of the mean - entropy of each).
    p = torch.tensor([[0.9, 0.1], [0.1, 0.9]])
    expected = 2 * np.exp(0.9 * np.log(0.9) + 0.1 * np.log(0.1))
    found = distances.inception_score(p.log().repeat(2000, 1)).value
    assert found == pytest.approx(expected, rel=0.01)
    with pytest.raises(UserError, match="10 images, got 9"):
        distances.inception_score(torch.zeros(9, 4))


def test_the_interval_of_a_frechet_distance_shrinks_with_the_images():
    widths = []
    for n in (100, 1600):
        found = distances.frechet_distance(normal(n, 4), normal(n, 4, 1, mean=0.5))
        assert found.low < found.value < found.high
        widths.append(found.high - found.low)
    assert widths[0] / widths[1] == pytest.approx(4, rel=0.4)


def test_few_images_are_labeled_and_too_few_named():
    x = normal(50, 64)
    found, missing = distances.all_distances(x, x[:6], is_clip=True)
    assert next(iter(found)) == "kid" and not missing.keys() - {"coverage"}
    assert "7" in missing["coverage"] and "6" in missing["coverage"]
    assert "small sample: 6 images" in found["frechet"].note
    assert "64" in found["frechet"].note


def test_bad_features_are_refused():
    x = normal(5, 4)
    with pytest.raises(UserError, match=r"\b4 numbers.*\b3\b"):
        distances.frechet_value(x, normal(5, 3))
    with pytest.raises(UserError, match="at least 2 images; the samples are 1"):
        distances.kid_value(x[:1], x)
    x[3, 1] = float("nan")
    with pytest.raises(NotFiniteError, match=r"the samples.* 1 of 5 .*image 3\b"):
        distances.check_features(x, "the samples in inception")
