"""Spacings of a sampler's timesteps: golden lists, those of diffusers, and what is refused."""

import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler

from foundation.errors import UserError
from ldm.samplers import SAMPLERS
from ldm.schedule import ScheduleConfig, make_schedule
from ldm.timesteps import (
    SPACINGS,
    custom_timesteps,
    find_spacing,
    karras,
    leading,
    linspace,
    trailing,
)
from tests.helpers.sampling import sample

TABLE, FLOW = ScheduleConfig(), ScheduleConfig(noise_schedule="flow")
ZERO = ScheduleConfig(zero_terminal_snr=True)
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


@pytest.mark.parametrize("steps", [1, 2, 3, 10, 50, 999, 1000])
@pytest.mark.parametrize("name", SPACINGS)
@pytest.mark.parametrize("config", [TABLE, FLOW], ids=["table", "flow"])
def test_timesteps_fall_within_the_schedule(name, config, steps):
    timesteps = SPACINGS[name](make_schedule(config), steps)
    assert len(timesteps) == steps
    assert (timesteps.diff() < 0).all()
    assert timesteps[0] <= 999
    assert timesteps[-1] > 0 if config is FLOW else timesteps[-1] >= 0
    if name != "leading":
        assert timesteps[0] == pytest.approx(999, abs=1e-3)


@pytest.mark.parametrize("steps", [2, 10, 50, 999])
def test_leading_and_linspace_equal_those_of_diffusers(steps):
    schedule = make_schedule(TABLE)
    for spacing, function, offset in (("leading", leading, 1), ("linspace", linspace, 0)):
        peer = DDIMScheduler(**BETAS, timestep_spacing=spacing, steps_offset=offset)
        peer.set_timesteps(steps)
        assert function(schedule, steps).tolist() == peer.timesteps.tolist()


def test_golden_lists():
    schedule = make_schedule(TABLE)
    assert leading(schedule, 5).tolist() == [801, 601, 401, 201, 1]
    assert linspace(schedule, 4).tolist() == [999, 666, 333, 0]
    assert trailing(schedule, 4).tolist() == [999, 749, 499, 249]
    assert linspace(schedule, 1).tolist() == [999]


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers
@pytest.mark.parametrize(
    ("name", "option"), [("karras", "use_karras_sigmas"), ("exponential", "use_exponential_sigmas")]
)
def test_noise_levels_equal_those_of_diffusers(name, option):
    schedule = make_schedule(TABLE)
    alpha, sigma = schedule.exact(SPACINGS[name](schedule, 20))
    peer = EulerDiscreteScheduler(**BETAS, timestep_spacing="linspace", **{option: True})
    peer.set_timesteps(20)
    torch.testing.assert_close((sigma / alpha).float(), peer.sigmas[:-1], rtol=2e-4, atol=0)


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_accepts_a_list_of_timesteps(name):
    schedule = make_schedule(TABLE)
    noise = torch.randn(1, 4, 2, 2, generator=torch.Generator().manual_seed(0))

    def draw(steps):
        fresh = torch.Generator().manual_seed(1)
        noises = iter([torch.randn(1, 4, 2, 2, generator=fresh) for _ in range(30)])
        return sample(name, lambda z, t: z.sin(), noise, schedule, steps, lambda *_: next(noises))

    torch.testing.assert_close(draw(10), draw(trailing(schedule, 10)))
    assert not torch.equal(draw(10), draw(karras(schedule, 10)))


def test_custom_timesteps_are_taken_as_they_are():
    assert custom_timesteps(make_schedule(TABLE), [999, 500.5, 0]).tolist() == [999, 500.5, 0]


@pytest.mark.parametrize("times", [[], [10, 20], [1000], [5, 5], [-1.0], [float("nan")]])
def test_custom_timesteps_must_fall_within_the_schedule(times):
    with pytest.raises(UserError, match="999"):
        custom_timesteps(make_schedule(TABLE), times)


def test_custom_timesteps_of_a_flow_must_not_reach_the_clean_end():
    with pytest.raises(UserError, match="500, 0 "):
        custom_timesteps(make_schedule(FLOW), [500, 0])


@pytest.mark.parametrize("name", ["karras", "exponential"])
def test_spacings_by_noise_level_refuse_zero_terminal_snr(name):
    with pytest.raises(UserError, match=f"{name} .* trailing"):
        SPACINGS[name](make_schedule(ZERO), 10)


def test_a_misspelled_spacing_gets_the_nearest_name():
    with pytest.raises(UserError, match=r"'Karas'.*'karras'"):
        find_spacing("Karas")
