"""Power-function averages against their closed form, and lengths reconstructed from stored ones."""

import re

import pytest
import torch
from scipy.integrate import quad
from torch import nn

from foundation.errors import UserError
from training.tools.average_length import choose, draw_curve
from training.weights.posthoc_ema import (
    SIGMA_RELS,
    PowerAverages,
    Profile,
    bytes_per_file,
    fit,
    gamma_of,
    inner_products,
    reconstruct,
    stored_steps,
)

STEPS = 400


class Walk:
    """Weights that move as in a training: fast at first, then with noise around a drifting mean."""

    def __init__(self, size: int = 64):
        random = torch.Generator().manual_seed(0)
        drift = torch.randn(size, generator=random)
        noise = torch.randn(STEPS, size, generator=random)
        progress = 1 - torch.exp(-torch.arange(1, STEPS + 1) / 60)
        self.path = progress[:, None] * drift + 0.05 * noise
        self.module = nn.Linear(size, 1, bias=False)

    def track(self, averages: list[PowerAverages]) -> None:
        for step in range(STEPS):
            self.module.weight.data = self.path[step : step + 1].clone()
            for average in averages:
                average.update(self.module, step)


@pytest.mark.parametrize("sigma_rel", [0.02, 0.05, 0.10, 0.25])
def test_sigma_rel_is_the_standard_deviation_of_the_profile(sigma_rel):
    gamma = gamma_of(sigma_rel)
    moments = [quad(lambda x, k=k: x**k * (gamma + 1) * x**gamma, 0, 1)[0] for k in range(3)]
    assert moments[0] == pytest.approx(1)
    assert (moments[2] - moments[1] ** 2) ** 0.5 == pytest.approx(sigma_rel, rel=1e-6)


def test_a_length_out_of_range_is_refused():
    for wrong in (0.0, 0.3):
        with pytest.raises(UserError, match=rf"{wrong}.* 0\.28"):
            gamma_of(wrong)


def test_inner_products_are_integrals():
    a, b = Profile(gamma=3.5, step=60), Profile(gamma=16.0, step=90)

    def p(profile, x):
        end = profile.step / 90
        return (profile.gamma + 1) * x**profile.gamma / end ** (profile.gamma + 1)

    integral = quad(lambda x: p(a, x) * p(b, x), 0, 60 / 90)[0]
    assert inner_products([a], [b])[0, 0] == pytest.approx(integral, rel=1e-6)


def test_the_tracked_average_has_the_closed_form(tmp_path):
    """Weight k of n counts (k^(gamma + 1) - (k - 1)^(gamma + 1)) / n^(gamma + 1)."""
    walk = Walk()
    averages = PowerAverages(walk.module, tmp_path, every=STEPS, steps=STEPS)
    walk.track([averages])
    places = torch.arange(STEPS + 1, dtype=torch.float64) / STEPS
    for sigma_rel in SIGMA_RELS:
        counts = (places ** (gamma_of(sigma_rel) + 1)).diff()
        expected = counts @ walk.path.double()
        torch.testing.assert_close(
            averages.averages[sigma_rel]["weight"][0].double(), expected, rtol=0, atol=1e-5
        )


@pytest.mark.parametrize(("half", "tolerance"), [(False, 2e-4), (True, 7e-4)])
def test_a_reconstructed_length_is_near_the_one_tracked_directly(tmp_path, half, tolerance):
    """From 16 stored files; the weights are about 1 in size, and half precision rounds to 5e-4."""
    lengths = (0.04, 0.07, 0.15)
    walk = Walk()
    stored = PowerAverages(walk.module, tmp_path / "a", every=25, steps=STEPS, half=half)
    direct = PowerAverages(
        walk.module, tmp_path / "b", every=STEPS, steps=STEPS, sigma_rels=lengths
    )
    walk.track([stored, direct])
    assert stored_steps(tmp_path / "a") == list(range(25, STEPS + 1, 25))
    for length in lengths:
        weights, error = reconstruct(tmp_path / "a", length, STEPS)
        wanted = direct.averages[length]["weight"]
        assert rms(weights["weight"] - wanted) < tolerance
        assert error < 0.02
        for near in SIGMA_RELS:  # both stored lengths are farther from it
            assert rms(stored.averages[near]["weight"] - wanted) > 2 * tolerance


def rms(x: torch.Tensor) -> float:
    return x.square().mean().sqrt().item()


def test_a_stored_length_is_reconstructed_as_stored(tmp_path):
    walk = Walk()
    averages = PowerAverages(walk.module, tmp_path, every=100, steps=STEPS, half=False)
    walk.track([averages])
    weights, error = reconstruct(tmp_path, 0.10, STEPS)
    torch.testing.assert_close(weights["weight"], averages.averages[0.10]["weight"])
    assert error < 1e-6
    earlier, _ = reconstruct(tmp_path, 0.10, 200)
    assert (earlier["weight"] - weights["weight"]).abs().max() > 0.01


def test_weights_that_never_move_are_reproduced(tmp_path):
    """Also where the profile is approximated badly, as the coefficients sum to 1."""
    module = nn.Linear(3, 2)
    averages = PowerAverages(module, tmp_path, every=10, steps=30, half=False)
    for step in range(30):
        averages.update(module, step)
    weights, error = reconstruct(tmp_path, 0.01, 30)
    assert error > 0.2
    torch.testing.assert_close(weights["weight"], module.weight.detach())
    assert weights.keys() == dict(module.named_parameters()).keys()


def test_more_stored_files_approximate_a_profile_better():
    errors = []
    for count in (4, 8, 16, 32):
        stored = [Profile(gamma_of(s), k) for k in range(1, count + 1) for s in SIGMA_RELS]
        errors.append(fit(stored, Profile(gamma_of(0.07), count)).error)
    assert errors == sorted(errors, reverse=True)
    assert errors[0] < 0.05 and errors[2] < 0.005


def test_a_resumed_average_goes_on_exactly(tmp_path):
    walk = Walk()
    straight = PowerAverages(walk.module, tmp_path / "a", every=STEPS, steps=STEPS)
    walk.track([straight])
    first = PowerAverages(walk.module, tmp_path / "b", every=STEPS, steps=STEPS)
    for step in range(STEPS):
        walk.module.weight.data = walk.path[step : step + 1].clone()
        if step == 150:
            state = {k: {n: w.clone() for n, w in v.items()} for k, v in first.state_dict().items()}
            first = PowerAverages(walk.module, tmp_path / "b", every=STEPS, steps=STEPS)
            first.load_state_dict(state)
        first.update(walk.module, step)
    for sigma_rel in SIGMA_RELS:
        assert torch.equal(
            first.averages[sigma_rel]["weight"], straight.averages[sigma_rel]["weight"]
        )


def test_size_on_disk_is_as_stated(tmp_path):
    module = nn.Linear(1000, 20)
    for half in (True, False):
        averages = PowerAverages(module, tmp_path / str(half), every=1, steps=1, half=half)
        averages.update(module, 0)
        size = (tmp_path / str(half) / "step-0000001.safetensors").stat().st_size
        assert size == pytest.approx(bytes_per_file(module.parameters(), half), rel=0.02)


def test_a_weight_too_large_for_half_precision_is_refused(tmp_path):
    module = nn.Linear(1, 1, bias=False)
    nn.init.constant_(module.weight, 1e5)
    averages = PowerAverages(module, tmp_path, every=1, steps=1)
    with pytest.raises(UserError, match="--no-averages-half"):
        averages.update(module, 0)
    assert not list(tmp_path.iterdir())


def test_the_best_length_is_chosen_and_drawn():
    scores = {0.05: 2.0, 0.10: 1.0, 0.20: float("nan")}
    assert choose(scores, higher_is_better=False) == 0.10
    assert choose(scores, higher_is_better=True) == 0.05
    assert choose({0.1: float("nan")}, higher_is_better=True) is None
    svg = draw_curve("loss", scores, score_of_run=1.5, best=0.10)
    assert len(re.findall("<circle", svg)) == 2 and "best at 0.1" in svg
