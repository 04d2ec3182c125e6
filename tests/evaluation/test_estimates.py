"""Intervals and verdicts against what statistics says of normal numbers."""

import math

import pytest
import torch

from evaluation.estimates import (
    Estimate,
    mean_estimate,
    paired_verdict,
    share_estimate,
    verdict,
)


def test_the_interval_of_a_mean_is_that_of_normal_numbers():
    values = torch.randn(400, generator=torch.Generator().manual_seed(0))
    found = mean_estimate(values)
    half = 1.96 * values.std().item() / 20
    assert found.low == pytest.approx(found.value - half, abs=0.15 * half)
    assert found.high == pytest.approx(found.value + half, abs=0.15 * half)
    assert mean_estimate(values[:1]).low is None


def test_infinite_values_have_no_interval():
    found = mean_estimate(torch.tensor([30.0, math.inf]), "higher")
    assert found.value == math.inf and found.high is None
    assert verdict(found, found) == "cannot be compared"


def test_wilson_interval():
    """Newcombe 1998, table I: 81 of 263 gives 0.2553 to 0.3662, 0 of 20 gives 0 to 0.1611."""
    found = share_estimate(torch.arange(263) < 81)
    assert (found.low, found.high) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    none = share_estimate(torch.zeros(20, dtype=torch.bool))
    assert (none.low, none.high) == pytest.approx((0, 0.1611), abs=1e-4)


@pytest.mark.parametrize(
    ("second", "better", "expected"),
    [
        (2.0, "higher", "better, 95 %"),
        (2.0, "lower", "worse, 95 %"),
        (2.0, "", "different, 95 %"),
        (1.1, "higher", "no difference seen"),
    ],
)
def test_verdicts(second, better, expected):
    first = Estimate(1.0, 0.9, 1.1, better)
    assert verdict(first, Estimate(second, second - 0.1, second + 0.1, better)) == expected


def test_pairs_see_what_two_intervals_do_not():
    first = torch.randn(100, generator=torch.Generator().manual_seed(0))
    second = first + 0.05 + 0.01 * torch.randn(100, generator=torch.Generator().manual_seed(1))
    estimates = mean_estimate(first, "higher"), mean_estimate(second, "higher")
    assert verdict(*estimates) == "no difference seen"
    assert paired_verdict(first, second, "higher") == "better, 95 %"
    assert paired_verdict(first, first, "higher") == "no difference seen"
