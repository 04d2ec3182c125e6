"""The loss: its weights, what it averages, and its value for a network that outputs zero."""

import pytest
import torch

from foundation.errors import UserError
from ldm.denoiser import NOTHING, Denoiser
from ldm.loss import (
    ObjectiveConfig,
    denoising_loss,
    loss_weight,
    sample_timesteps,
    sample_timesteps_and_noise,
)
from ldm.schedule import ScheduleConfig, make_schedule

TABLE, FLOW = ScheduleConfig(), ScheduleConfig(noise_schedule="flow")
ZERO = ScheduleConfig(zero_terminal_snr=True)
PAIRS = [
    (TABLE, "noise"),
    (TABLE, "velocity"),
    (TABLE, "sample"),
    (ZERO, "velocity"),
    (ZERO, "sample"),
    (FLOW, "flow"),
    (FLOW, "sample"),
]


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def generators(count: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(k) for k in range(count)]


class ZeroNetwork(torch.nn.Module):
    def forward(self, z_t, t, context):
        return torch.zeros_like(z_t)


@pytest.mark.parametrize("weighting", ["uniform", "min_snr", "soft_min_snr"])
@pytest.mark.parametrize(("config", "prediction"), PAIRS)
def test_the_loss_of_a_zero_output_is_the_weight_times_the_mean_square_of_the_target(
    config, prediction, weighting
):
    schedule = make_schedule(config)
    objective = ObjectiveConfig(prediction=prediction, weighting=weighting)
    denoiser = Denoiser(ZeroNetwork(), schedule, prediction)
    latents = torch.randn(200, 4, 16, 16, generator=generator())
    t, noise = sample_timesteps_and_noise(latents, schedule, objective, generators(len(latents)))
    loss = denoising_loss(denoiser, latents, NOTHING, objective, t=t, noise=noise)
    # The flow is a difference of two numbers of unit variance, the others have unit variance.
    mean_square = 2 if prediction == "flow" else 1
    expected = mean_square * loss_weight(*schedule(t), prediction, objective).flatten()
    assert loss.shape == (200,)
    assert loss.mean().item() == pytest.approx(expected.mean().item(), rel=0.02)
    if weighting == "uniform":
        assert expected.eq(mean_square).all()


def test_the_loss_is_per_sample_and_zero_for_a_perfect_prediction():
    objective = ObjectiveConfig(prediction="velocity")
    denoiser = Denoiser(ZeroNetwork(), make_schedule(TABLE), "velocity")
    t, noise = torch.tensor([10, 900]), torch.randn(2, 4, 8, 8, generator=generator())
    latents = torch.zeros_like(noise)
    noise[0] = 0  # then the velocity is zero, as the network outputs
    loss = denoising_loss(denoiser, latents, NOTHING, objective, t=t, noise=noise)
    alpha, _ = denoiser.schedule(t)
    assert loss[0] == 0
    torch.testing.assert_close(loss[1], (alpha[1] * noise[1]).square().mean())


@pytest.mark.parametrize("weighting", ["min_snr", "soft_min_snr"])
@pytest.mark.parametrize(("config", "prediction"), PAIRS)
def test_an_error_of_z_0_costs_the_same_for_every_prediction(config, prediction, weighting):
    schedule = make_schedule(config)
    objective = ObjectiveConfig(prediction=prediction, weighting=weighting)
    t = torch.tensor([1, 100, 400, 700, 950])
    alpha, sigma = schedule(t)
    snr = alpha**2 / sigma**2
    weight_of_z_0 = snr.clamp(max=5) if weighting == "min_snr" else snr * 5 / (snr + 5)
    change_per_z_0 = {  # at a given z_t
        "noise": alpha / sigma,
        "velocity": 1 / sigma,
        "sample": torch.ones_like(sigma),
        "flow": 1 / sigma,
    }[prediction]
    expected = weight_of_z_0 / change_per_z_0**2
    torch.testing.assert_close(loss_weight(alpha, sigma, prediction, objective), expected)


def test_min_snr_equals_the_published_formulas():
    schedule = make_schedule(TABLE)
    alpha, sigma = schedule(torch.tensor([1, 100, 400, 700, 999]))
    snr = alpha**2 / sigma**2
    capped = snr.clamp(max=5)
    objective = ObjectiveConfig(weighting="min_snr")
    for prediction, expected in {
        "noise": capped / snr,
        "velocity": capped / (snr + 1),
        "sample": capped,
    }.items():
        torch.testing.assert_close(loss_weight(alpha, sigma, prediction, objective), expected)


@pytest.mark.parametrize("weighting", ["uniform", "min_snr", "soft_min_snr"])
def test_weights_are_finite_at_both_ends(weighting):
    objective = ObjectiveConfig(weighting=weighting)
    for config, prediction in PAIRS:
        alpha, sigma = make_schedule(config)(torch.tensor([0, 999]))
        assert loss_weight(alpha, sigma, prediction, objective).isfinite().all()


@pytest.mark.parametrize("config", [TABLE, FLOW], ids=["table", "flow"])
def test_uniform_timesteps_cover_the_whole_schedule(config):
    schedule = make_schedule(config)
    t = sample_timesteps(schedule, ObjectiveConfig(), generators(20_000))
    assert t.min() >= 0 and t.max() < 1000 and t.floor().long().unique().numel() == 1000
    assert t.float().mean().item() == pytest.approx(500, rel=0.02)
    assert t.is_floating_point() == (config.noise_schedule == "flow")


def test_logit_normal_timesteps_have_the_given_mean_and_spread():
    schedule = make_schedule(FLOW)
    objective = ObjectiveConfig(times="logit_normal", logit_mean=0.5, logit_std=2.0)
    t = sample_timesteps(schedule, objective, generators(50_000))
    logit = (t / 1000).logit()
    assert logit.mean().item() == pytest.approx(0.5, abs=0.03)
    assert logit.std().item() == pytest.approx(2, abs=0.03)


@pytest.mark.parametrize("config", [TABLE, FLOW], ids=["table", "flow"])
def test_extreme_logits_stay_within_the_schedule(config):
    objective = ObjectiveConfig(times="logit_normal", logit_mean=100.0)
    assert sample_timesteps(make_schedule(config), objective, generators(3)).max() < 1000


def test_offset_noise_shifts_whole_channels():
    latents, objective = torch.zeros(500, 4, 8, 8), ObjectiveConfig(offset_noise=0.5)
    schedule, random = make_schedule(TABLE), generators(500)
    _, noise = sample_timesteps_and_noise(latents, schedule, objective, random)
    assert noise.mean(dim=(2, 3)).var().item() == pytest.approx(0.25 + 1 / 64, rel=0.1)
    random = generators(500)
    _, plain = sample_timesteps_and_noise(latents, schedule, ObjectiveConfig(), random)
    assert plain.mean(dim=(2, 3)).var().item() == pytest.approx(1 / 64, rel=0.1)


def test_the_noise_of_a_sample_depends_on_its_generator_alone():
    latents, objective = torch.zeros(3, 4, 8, 8), ObjectiveConfig(offset_noise=0.1)
    schedule = make_schedule(TABLE)
    together = sample_timesteps_and_noise(latents, schedule, objective, generators(3))
    torch.manual_seed(1)
    alone = sample_timesteps_and_noise(latents[2:], schedule, objective, generators(3)[2:])
    for a, b in zip(together, alone, strict=True):
        assert torch.equal(a[2:], b)


@pytest.mark.parametrize("field", ["gamma", "logit_std", "offset_noise"])
def test_impossible_configs_are_refused(field):
    with pytest.raises(UserError, match=field):
        ObjectiveConfig(**{field: -1.0})
