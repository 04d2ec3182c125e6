"""Guidance against its definitions, with a network whose answers are known."""

import re

import pytest
import torch

from foundation.errors import UserError
from ldm.denoiser import Conditioning, Denoiser
from ldm.guidance import Guidance, GuidedDenoiser
from ldm.schedule import ScheduleConfig, make_schedule

SCHEDULE = make_schedule(ScheduleConfig())
SHAPE = (2, 4, 6, 6)
T = torch.tensor([500, 500])


class Lookup(torch.nn.Module):
    """A network that returns the pattern whose number is in the context; it records batch sizes."""

    def __init__(self, seed: int = 0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.patterns = torch.randn(9, *SHAPE[1:], generator=generator)
        self.batches = []

    def forward(self, z_t, t, context):
        self.batches.append(len(z_t))
        return self.patterns[context[:, 0, 0].long()]


def context(number: int) -> torch.Tensor:
    return torch.full((2, 3, 5), float(number))


def draw(guidance: Guidance, conds=((1, 1.0),), t=T, weak=None, prediction="sample", network=None):
    network = network or Lookup()
    denoiser = Denoiser(network, SCHEDULE, prediction)
    prompts = [(Conditioning(context(number)), weight) for number, weight in conds]
    z_t = torch.randn(SHAPE, generator=torch.Generator().manual_seed(5))
    denoise = GuidedDenoiser(denoiser, prompts, Conditioning(context(0)), guidance, weak)
    return denoise(z_t, t), network


def test_prompts_are_composed_by_their_weights():
    """a AND b: each adds its weighted difference from the empty prompt, in one network call."""
    result, network = draw(Guidance(scale=3.0), conds=((1, 0.7), (2, 0.3)))
    empty, a, b = network.patterns[:3]
    expected = empty + 3.0 * (0.7 * (a - empty) + 0.3 * (b - empty))
    torch.testing.assert_close(result, expected.expand(SHAPE))
    assert network.batches == [6]


@pytest.mark.parametrize(("time", "guided"), [(0, False), (200, True), (700, True), (900, False)])
def test_outside_its_interval_the_empty_prompt_is_not_computed(time, guided):
    t = torch.tensor([time, time])
    result, network = draw(Guidance(scale=4.0, interval=(0.1, 0.7)), t=t)
    empty, a = network.patterns[:2]
    expected = empty + 4.0 * (a - empty) if guided else a
    torch.testing.assert_close(result, expected.expand(SHAPE))
    assert network.batches == ([4] if guided else [2])


@pytest.mark.parametrize("prediction", ["noise", "velocity"])
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_rescaling_is_that_of_lin_et_al(prediction, share):
    """As diffusers' rescale_noise_cfg: applied to the network's output."""
    result, network = draw(Guidance(scale=7.0, rescale=share), prediction=prediction)
    empty, a = network.patterns[:2].double()
    output = empty + 7.0 * (a - empty)
    output = output * (share * a.std() / output.std() + 1 - share)
    alpha, sigma = (x.double() for x in SCHEDULE(T))
    z_t = torch.randn(SHAPE, generator=torch.Generator().manual_seed(5)).double()
    if prediction == "noise":
        expected = (z_t - sigma * output) / alpha
    else:
        expected = alpha * z_t - sigma * output
    torch.testing.assert_close(result.double(), expected, rtol=1e-4, atol=1e-4)


def test_projected_guidance_keeps_the_orthogonal_component():
    result, network = draw(Guidance(scale=5.0, parallel=0.0))
    empty, a = network.patterns[:2]
    update = result[0] - a
    assert (update * a).sum().abs() < 1e-3 * update.norm() * a.norm()
    full = 4.0 * (a - empty)
    torch.testing.assert_close(update, full - (full * a).sum() / a.square().sum() * a)


def test_the_norm_of_the_guidance_direction_is_limited():
    result, network = draw(Guidance(scale=2.0, max_norm=1.5))
    a = network.patterns[1]
    assert (result[0] - a).norm().item() == pytest.approx(1.5, rel=1e-4)
    loose, _ = draw(Guidance(scale=2.0, max_norm=1e6))
    free, _ = draw(Guidance(scale=2.0))
    torch.testing.assert_close(loose, free)


def test_momentum_lasts_for_one_run():
    network = Lookup()
    denoiser = Denoiser(network, SCHEDULE, "sample")
    empty, a = network.patterns[:2]
    z_t, guidance = torch.zeros(SHAPE), Guidance(scale=2.0, momentum=-0.5)
    for _ in range(2):  # each run anew
        denoise = GuidedDenoiser(
            denoiser, [(Conditioning(context(1)), 1.0)], Conditioning(context(0)), guidance
        )
        first, second = denoise(z_t, T), denoise(z_t, T)
        torch.testing.assert_close(first[0], a + (a - empty))
        torch.testing.assert_close(second[0], a + 0.5 * (a - empty))


def test_autoguidance_moves_away_from_the_weaker_model():
    """Both models get the same prompt; the empty prompt is not computed."""
    other = Lookup(seed=1)
    weak = Denoiser(other, SCHEDULE, "sample")
    result, network = draw(Guidance(scale=2.0), weak=weak)
    good, bad = network.patterns[1], other.patterns[1]
    torch.testing.assert_close(result, (bad + 2.0 * (good - bad)).expand(SHAPE))
    assert network.batches == other.batches == [2]


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"interval": (0.5, 0.5)}, "0.5 to 0.5"),
        ({"interval": (0.2, 1.5)}, "0.2 to 1.5"),
        ({"rescale": 1.5}, "rescale is 1.5"),
        ({"parallel": -1.0}, "parallel is -1"),
        ({"max_norm": 0.0}, "max_norm is 0"),
        ({"momentum": 1.0}, "momentum is 1"),
    ],
)
def test_settings_out_of_range_are_refused(settings, match):
    with pytest.raises(ValueError, match=match):
        Guidance(**settings)


@pytest.mark.parametrize("scale", [1e30, -1e30, float("inf"), float("nan")])
def test_a_scale_that_overflows_is_refused_by_its_name(scale):
    with pytest.raises(UserError, match=re.escape(f"guidance_scale is {scale:g}")):
        Guidance(scale=scale)
