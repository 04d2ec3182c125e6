"""Conversions between predictions, and the guidance scale."""

from itertools import product
from typing import get_args

import pytest
import torch

from ldm.denoiser import Conditioning, Denoiser, Prediction, combine, convert
from ldm.guidance import Guidance, GuidedDenoiser
from ldm.schedule import ScheduleConfig, make_schedule

FLOW, TABLE = ScheduleConfig(noise_schedule="flow"), ScheduleConfig()
ZERO = ScheduleConfig(zero_terminal_snr=True)
VALID = [
    (TABLE, "noise"),
    (TABLE, "velocity"),
    (TABLE, "sample"),
    (ZERO, "velocity"),
    (ZERO, "sample"),
    (FLOW, "flow"),
    (FLOW, "sample"),
    (FLOW, "noise"),
]


def randn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


class Oracle(torch.nn.Module):
    """A network that returns a given answer and records its calls."""

    def forward(self, z_t, t, context=None):
        self.calls = [*getattr(self, "calls", []), (z_t, t, context)]
        return self.answer


@pytest.mark.parametrize(("given", "wanted"), [*product(get_args(Prediction), repeat=2)])
@pytest.mark.parametrize("config", [TABLE, FLOW], ids=["table", "flow"])
def test_every_prediction_converts_to_every_other(config, given, wanted):
    t = torch.tensor([1, 300, 900])
    alpha, sigma = make_schedule(config)(t)
    z_0, noise = randn(3, 4, 2, 2), randn(3, 4, 2, 3)[..., :2]
    z_t = alpha * z_0 + sigma * noise
    output = combine(z_0, noise, given, alpha, sigma)
    expected = combine(z_0, noise, wanted, alpha, sigma)
    converted = convert(output, given, wanted, z_t, alpha, sigma)
    torch.testing.assert_close(converted, expected, rtol=1e-3, atol=1e-3)


def test_predictions_follow_their_definitions():
    schedule = make_schedule(TABLE)
    t = torch.tensor([10, 700])
    alpha, sigma = schedule(t)
    z_0, noise = randn(2, 1, 2, 2), randn(2, 1, 2, 3)[..., :2]
    assert torch.equal(combine(z_0, noise, "noise", alpha, sigma), noise)
    assert torch.equal(combine(z_0, noise, "sample", alpha, sigma), z_0)
    assert torch.equal(combine(z_0, noise, "flow", alpha, sigma), noise - z_0)
    # velocity is the derivative of z_t by the angle whose sine is sigma
    angle = torch.atan2(sigma, alpha).requires_grad_()
    z_t = (angle.cos() * z_0 + angle.sin() * noise).sum(dim=(1, 2, 3))
    (slope,) = torch.autograd.grad(z_t.sum(), angle)
    velocity = combine(z_0, noise, "velocity", alpha, sigma).sum(dim=(1, 2, 3))
    torch.testing.assert_close(slope.flatten(), velocity)


@pytest.mark.parametrize(("config", "prediction"), VALID)
def test_a_perfect_network_gives_back_the_clean_latents(config, prediction):
    denoiser = Denoiser(Oracle(), make_schedule(config), prediction)
    t = torch.tensor([1, 500, 990])
    alpha, sigma = denoiser.schedule(t)
    z_0, noise = randn(3, 4, 2, 2), randn(3, 4, 2, 3)[..., :2]
    denoiser.network.answer = denoiser.target(z_0, noise, t)
    estimate = denoiser(alpha * z_0 + sigma * noise, t)
    torch.testing.assert_close(estimate, z_0, rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize("prediction", ["velocity", "sample"])
def test_estimates_are_finite_at_zero_terminal_snr(prediction):
    denoiser = Denoiser(Oracle(), make_schedule(ZERO), prediction)
    z_0, noise, t = randn(2, 4, 2, 2), randn(2, 4, 2, 3)[..., :2], torch.tensor([999, 999])
    denoiser.network.answer = denoiser.target(z_0, noise, t)
    torch.testing.assert_close(denoiser(noise, t), z_0)


@pytest.mark.parametrize(
    ("config", "prediction", "match"),
    [
        (ZERO, "noise", "zero terminal SNR.*velocity"),
        (TABLE, "flow", "needs noise_schedule flow"),
        (FLOW, "velocity", "variance-preserving"),
    ],
)
def test_predictions_that_do_not_go_with_the_schedule_are_refused(config, prediction, match):
    with pytest.raises(ValueError, match=match):
        Denoiser(Oracle(), make_schedule(config), prediction)


def test_on_a_flow_the_network_sees_floored_timesteps():
    denoiser = Denoiser(Oracle(), make_schedule(FLOW), "flow")
    denoiser.network.answer = torch.ones(2, 1, 1, 1)
    z_t, t = torch.zeros(2, 1, 1, 1), torch.tensor([999.0, 499.5])
    estimate = denoiser(z_t, t)
    assert denoiser.network.calls[0][1].tolist() == [999, 499]
    torch.testing.assert_close(estimate.flatten(), torch.tensor([-0.999, -0.4995]))


def test_conversions_stay_in_fp32_under_autocast():
    denoiser = Denoiser(torch.nn.Conv2d(4, 4, 1), make_schedule(TABLE), "velocity")
    denoiser.network.forward = lambda z_t, t, context: torch.nn.Conv2d.forward(
        denoiser.network, z_t
    )
    z_t, t = randn(2, 4, 2, 2), torch.tensor([3, 999])
    with torch.autocast("cpu", torch.bfloat16):
        assert denoiser.network(z_t, t, None).dtype == torch.bfloat16
        assert denoiser(z_t, t).dtype == torch.float32


def guided(denoiser, cond, uncond, scale):
    conds = [(Conditioning(cond), 1.0)]
    return GuidedDenoiser(denoiser, conds, Conditioning(uncond), Guidance(scale=scale))


class Text(torch.nn.Module):
    """A network that predicts the mean of its context at every pixel."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, z_t, t, context):
        self.calls += 1
        return context.mean(dim=(1, 2))[:, None, None, None].expand_as(z_t)


@pytest.mark.parametrize(
    ("scale", "expected", "calls"), [(0.0, -1.0, 1), (1.0, 2.0, 1), (0.5, 0.5, 1), (4.0, 11.0, 1)]
)
def test_guidance_scale(scale, expected, calls):
    network = Text()
    denoiser = Denoiser(network, make_schedule(TABLE), "sample")
    cond, uncond = torch.full((3, 5, 7), 2.0), torch.full((3, 5, 7), -1.0)
    z_0 = guided(denoiser, cond, uncond, scale)(torch.zeros(3, 4, 2, 2), torch.tensor([5, 5, 5]))
    torch.testing.assert_close(z_0, torch.full((3, 4, 2, 2), expected))
    assert network.calls == calls


def test_guidance_calls_the_network_once_and_only_for_the_prompts_it_needs():
    network = Oracle()
    denoiser = Denoiser(network, make_schedule(TABLE), "sample")
    cond, uncond = torch.full((1, 2, 3), 2.0), torch.full((1, 2, 3), -1.0)
    for scale, contexts in ((0.0, [-1]), (1.0, [2]), (3.0, [-1, 2])):
        network.calls, network.answer = [], torch.zeros(len(contexts), 4, 2, 2)
        guided(denoiser, cond, uncond, scale)(torch.zeros(1, 4, 2, 2), torch.tensor([5]))
        ((z_t, t, context),) = network.calls
        assert len(z_t) == len(t) == len(contexts)
        assert context[:, 0, 0].tolist() == contexts
