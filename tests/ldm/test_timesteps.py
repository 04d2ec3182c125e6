"""Times of a sampler: golden lists, diffusers' own, and what is refused."""

import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler

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

TABLE, FLOW = ScheduleConfig(), ScheduleConfig(noise_schedule="flow")
ZERO = ScheduleConfig(zero_terminal_snr=True)
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


@pytest.mark.parametrize("steps", [1, 2, 3, 10, 50, 999, 1000])
@pytest.mark.parametrize("name", SPACINGS)
@pytest.mark.parametrize("config", [TABLE, FLOW], ids=["table", "flow"])
def test_times_fall_within_the_schedule(name, config, steps):
    schedule = make_schedule(config)
    times = SPACINGS[name](schedule, steps)
    assert len(times) == steps
    assert (times.diff() < 0).all()
    assert times[0] <= 999 and (times[-1] > 0 if config is FLOW else times[-1] >= 0)
    if name != "leading":
        assert times[0] == pytest.approx(999, abs=1e-3)


@pytest.mark.parametrize("steps", [2, 10, 50, 999])
def test_leading_and_linspace_are_those_of_diffusers(steps):
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
def test_noise_levels_are_those_of_diffusers(name, option):
    schedule = make_schedule(TABLE)
    alpha, sigma = schedule.exact(SPACINGS[name](schedule, 20))
    peer = EulerDiscreteScheduler(**BETAS, timestep_spacing="linspace", **{option: True})
    peer.set_timesteps(20)
    torch.testing.assert_close((sigma / alpha).float(), peer.sigmas[:-1], rtol=2e-4, atol=0)


def test_a_time_is_found_by_its_noise():
    for config in (TABLE, FLOW, ZERO, ScheduleConfig(noise_schedule="cosine")):
        schedule = make_schedule(config)
        times = torch.arange(1, 998, 7.3, dtype=torch.float64)
        alpha, sigma = schedule.exact(times)
        torch.testing.assert_close(
            schedule.timesteps_of_ratio(sigma / alpha), times, rtol=0, atol=1e-6
        )


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_takes_times(name):
    schedule = make_schedule(TABLE)
    noise = torch.randn(1, 4, 2, 2, generator=torch.Generator().manual_seed(0))

    def draw(steps):
        fresh = torch.Generator().manual_seed(1)
        noises = [torch.randn(1, 4, 2, 2, generator=fresh) for _ in range(30)]
        calls = iter(noises)
        return SAMPLERS[name](lambda z, t: z.sin(), noise, schedule, steps, lambda *_: next(calls))

    torch.testing.assert_close(draw(10), draw(trailing(schedule, 10)))
    assert not torch.equal(draw(10), draw(karras(schedule, 10)))


def test_times_of_ones_own():
    schedule = make_schedule(TABLE)
    assert custom_timesteps(schedule, [999, 500.5, 0]).tolist() == [999, 500.5, 0]
    for wrong in ([], [10, 20], [1000], [5, 5], [-1.0]):
        with pytest.raises(ValueError, match="999"):
            custom_timesteps(schedule, wrong)
    with pytest.raises(ValueError, match=r"\b1 \("):
        custom_timesteps(make_schedule(FLOW), [500, 0])


@pytest.mark.parametrize("name", ["karras", "exponential"])
def test_infinite_ratios_are_refused(name):
    with pytest.raises(ValueError, match=f"{name} .* infinite .* trailing"):
        SPACINGS[name](make_schedule(ZERO), 10)


def test_unknown_names_get_a_near_miss():
    with pytest.raises(ValueError, match="'karras'"):
        find_spacing("Karas")
