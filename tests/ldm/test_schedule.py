"""Noise schedules against their definitions, against diffusers and against golden lists."""

import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler
from hypothesis import given
from hypothesis import strategies as st

from foundation.errors import UserError
from ldm.schedule import NoiseSchedule, RectifiedFlow, ScheduleConfig, make_schedule

VARIANCE_PRESERVING = [
    ScheduleConfig(noise_schedule=kind, zero_terminal_snr=zero)
    for kind in ("linear", "scaled_linear", "cosine")
    for zero in (False, True)
]
ALL = [*VARIANCE_PRESERVING, ScheduleConfig(noise_schedule="flow")]


def name(config: ScheduleConfig) -> str:
    return config.noise_schedule + " zero" * config.zero_terminal_snr


@pytest.mark.parametrize("config", VARIANCE_PRESERVING, ids=name)
def test_tables_equal_those_of_diffusers(config):
    peer = DDIMScheduler(
        beta_schedule="squaredcos_cap_v2"
        if config.noise_schedule == "cosine"
        else config.noise_schedule,
        beta_start=config.beta_start,
        beta_end=config.beta_end,
        rescale_betas_zero_snr=config.zero_terminal_snr,
    )
    alpha, sigma = make_schedule(config)(torch.arange(1000))
    expected = peer.alphas_cumprod  # computed in float32
    torch.testing.assert_close(alpha.flatten(), expected.sqrt(), rtol=0, atol=1e-6)
    torch.testing.assert_close(sigma.flatten() ** 2, 1 - expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("config", ALL, ids=name)
def test_alpha_falls_and_sigma_rises_with_time(config):
    schedule = make_schedule(config)
    for t in (torch.arange(1000), torch.arange(0, 999, 0.37)):
        alpha, sigma = (scale.flatten() for scale in schedule(t))
        assert (alpha.diff() < 0).all()
        assert (sigma.diff() >= 0).all()  # near 1 its differences are below float32
    assert len(schedule) == 1000


@pytest.mark.parametrize("config", ALL, ids=name)
def test_a_schedule_adds_nothing_to_a_checkpoint(config):
    assert not make_schedule(config).state_dict()


@pytest.mark.parametrize("config", VARIANCE_PRESERVING, ids=name)
def test_variance_is_preserved_also_between_whole_timesteps(config):
    schedule = make_schedule(config)
    for t in (torch.arange(1000), torch.arange(0, 999, 0.37)):
        alpha, sigma = schedule(t)
        torch.testing.assert_close(alpha**2 + sigma**2, torch.ones_like(alpha))


def test_whole_timesteps_given_as_floats_give_the_same():
    schedule = make_schedule(ScheduleConfig(zero_terminal_snr=True))
    t = torch.tensor([0, 1, 500, 998, 999])
    for whole, real in zip(schedule(t), schedule(t.float()), strict=True):
        torch.testing.assert_close(whole, real, rtol=1e-6, atol=0)


def test_zero_terminal_snr_changes_the_noisy_end_only():
    plain = make_schedule(ScheduleConfig())
    zero = make_schedule(ScheduleConfig(zero_terminal_snr=True))
    assert plain.alpha[-1] > 0.06  # the fault that the rescaling corrects
    assert zero.alpha[-1] == 0 and zero.sigma[-1] == 1
    assert zero.alpha[0] == plain.alpha[0]


def test_the_flow_is_a_straight_line():
    alpha, sigma = RectifiedFlow()(torch.tensor([0.0, 250.0, 999.0]))
    torch.testing.assert_close(alpha.flatten(), torch.tensor([1, 0.75, 0.001]))
    torch.testing.assert_close(sigma.flatten(), torch.tensor([0, 0.25, 0.999]))


@given(
    st.sampled_from([config for config in ALL if not config.zero_terminal_snr]),
    st.lists(st.floats(1, 998.99), min_size=1, max_size=5),
)
def test_timesteps_of_ratio_inverts_exact(config, times):
    schedule = make_schedule(config)
    t = torch.tensor(times, dtype=torch.float64)
    alpha, sigma = schedule.exact(t)
    again = schedule.timesteps_of_ratio(sigma / alpha)
    torch.testing.assert_close(again, t, rtol=0, atol=1e-6)


def test_a_ratio_outside_the_table_gives_its_nearest_end():
    schedule = make_schedule(ScheduleConfig())
    ratio = torch.tensor([0.0, 1e9, torch.inf], dtype=torch.float64)
    assert schedule.timesteps_of_ratio(ratio).tolist() == [0, 999, 999]


@pytest.mark.parametrize(
    ("steps", "golden"),
    [
        (1, [999]),
        (2, [999, 499]),
        (3, [999, 666, 332]),
        (10, [999, 899, 799, 699, 599, 499, 399, 299, 199, 99]),
        (50, list(range(999, 0, -20))),
        (999, [999, 998, 997, 996]),
        (1000, list(range(999, -1, -1))),
    ],
)
def test_golden_timesteps_of_variance_preserving_schedules(steps, golden):
    timesteps = make_schedule(ScheduleConfig()).timesteps(steps)
    assert timesteps[: len(golden)].tolist() == golden
    assert len(timesteps) == steps


def test_timesteps_equal_those_of_diffusers_for_every_number_of_steps():
    schedule = make_schedule(ScheduleConfig())
    peer = DDIMScheduler(timestep_spacing="trailing")
    for steps in range(1, 1001):
        timesteps = schedule.timesteps(steps)
        assert len(timesteps) == steps and timesteps[0] == 999 and timesteps[-1] >= 0
        assert (timesteps.diff() < 0).all()
        peer.set_timesteps(steps)
        assert timesteps.equal(peer.timesteps[:steps])  # theirs may end with one more, at -1


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_timesteps_of_the_flow_equal_those_of_diffusers_for_every_number_of_steps(shift):
    schedule = RectifiedFlow(shift)
    peer = DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift
    )
    for steps in range(1, 1001):
        timesteps = schedule.timesteps(steps)
        peer.set_timesteps(steps)
        assert len(timesteps) == steps
        assert timesteps.floor().equal(peer.timesteps.float())  # as the network gets them
        torch.testing.assert_close(schedule(timesteps)[1].flatten(), peer.sigmas[:-1])


def test_timesteps_of_the_flow_are_equal_strides_from_999():
    torch.testing.assert_close(RectifiedFlow().timesteps(3), torch.tensor([999.0, 666.0, 333.0]))


def test_quantiles_cover_all_timesteps():
    table, flow = make_schedule(ScheduleConfig()), RectifiedFlow()
    quantile = torch.tensor([0, 0.5, 1 - 2**-24])
    assert table.timesteps_of_quantile(quantile).tolist() == [0, 500, 999]
    assert flow.timesteps_of_quantile(quantile).floor().tolist() == [0, 500, 999]


@pytest.mark.parametrize(
    ("config", "match"),
    [
        ({"noise_schedule": "flow", "zero_terminal_snr": True}, "zero_terminal_snr"),
        ({"shift": 3.0}, r"shift=3\.0"),
        ({"noise_schedule": "flow", "shift": 0.0}, r"shift=0\.0"),
        ({"beta_start": 0.02, "beta_end": 0.01}, r"0\.02 .* 0\.01"),
    ],
)
def test_impossible_configs_are_refused(config, match):
    with pytest.raises(UserError, match=match):
        ScheduleConfig(**config)


@pytest.mark.parametrize("steps", [0, 1001])
@pytest.mark.parametrize("kind", ["scaled_linear", "flow"])
def test_impossible_numbers_of_steps_are_refused(kind, steps):
    schedule = make_schedule(ScheduleConfig(noise_schedule=kind))
    with pytest.raises(UserError, match=f"1 .* 1000 .* {steps}"):
        schedule.timesteps(steps)


def test_a_table_that_does_not_fall_is_refused():
    with pytest.raises(ValueError, match="alpha_bar"):
        NoiseSchedule(torch.tensor([0.9, 0.9, 0.1]))
