"""Samplers against Gaussian data, for which the exact solution is known."""

from functools import partial
from itertools import pairwise

import pytest
import torch

from foundation.errors import UserError
from ldm.samplers import (
    CALLS_PER_STEP,
    SAMPLERS,
    STOCHASTIC,
    ddim,
    ddpm,
    dpmpp_2m_sde,
    dpmpp_3m_sde,
    euler_ancestral,
    find_sampler,
    unipc,
)
from ldm.samplers.noise import SeededNoise
from ldm.schedule import ScheduleConfig, make_schedule
from tests.helpers.sampling import sample

STD = 0.5  # of the data: z_0 ~ N(0, STD^2), for which E[z_0 | z_t] is a Wiener filter
SCHEDULES = {
    "scaled_linear": ScheduleConfig(),
    "cosine": ScheduleConfig(noise_schedule="cosine"),
    "zero terminal SNR": ScheduleConfig(zero_terminal_snr=True),
    "flow": ScheduleConfig(noise_schedule="flow"),
}
ALWAYS = ("scaled_linear", "flow")  # long tests try the other two with -m slow
DETERMINISTIC = sorted(SAMPLERS.keys() - STOCHASTIC)
SECOND_ORDER = ["dpm_2", "dpmpp_2m", "dpmpp_2s", "heun"]


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def fresh(*shape: int, seed: int = 5):
    generator = torch.Generator().manual_seed(seed)
    return lambda *_: torch.randn(*shape, generator=generator)


class Gaussian:
    """The ideal denoiser of Gaussian data; it records its calls."""

    def __init__(self, schedule):
        self.schedule, self.visited = schedule, {}

    def __call__(self, z_t, t):
        self.visited[int(t[0])] = t[:1], z_t
        alpha, sigma = self.schedule(t)
        return alpha * STD**2 / (alpha**2 * STD**2 + sigma**2) * z_t

    def spread(self, t: torch.Tensor) -> float:
        """The exact solution only rescales the noise, in this proportion."""
        alpha, sigma = self.schedule(t)
        return (alpha**2 * STD**2 + sigma**2).sqrt().item()


START = torch.tensor([999])


def error_at(sampler, config: ScheduleConfig, steps: int, time: int) -> float:
    """Return the relative error at one of the sampler's timesteps."""
    schedule = make_schedule(config)
    denoise, noise = Gaussian(schedule), randn(2, 4, 8, 8).double()
    sample(sampler, denoise, noise, schedule, steps)
    t, z_t = denoise.visited[time]
    exact = noise * denoise.spread(t) / denoise.spread(START)
    return ((z_t - exact).norm() / exact.norm()).item()


@pytest.mark.parametrize("sampler", DETERMINISTIC)
@pytest.mark.parametrize("config", SCHEDULES.values(), ids=SCHEDULES.keys())
def test_a_sampler_reaches_the_exact_solution(sampler, config):
    schedule = make_schedule(config)
    denoise, noise = Gaussian(schedule), randn(2, 4, 8, 8)
    exact = noise * STD / denoise.spread(START)
    result = sample(sampler, denoise, noise, schedule, 500)
    assert (result - exact).norm() / exact.norm() < 0.01


def late_timestep(config: ScheduleConfig) -> int:
    """Return a timestep with little noise that samplers of 50, 100 and 200 steps all have."""
    return {"flow": 599, "cosine": 399}.get(config.noise_schedule, 199)


@pytest.mark.parametrize("sampler", ["ddim", "euler", *SECOND_ORDER])
@pytest.mark.parametrize("config", SCHEDULES.values(), ids=SCHEDULES.keys())
def test_the_error_falls_with_the_order_of_the_sampler(sampler, config):
    """Halving the step size divides the error by 2 (first order) or 4 (second order).

    On the way, at a fixed time: the very last step, to the clean end, is of first order for all.
    Heun's method on the cosine schedule does better, by 8: what it leaves there is the first step.
    """
    coarse, fine = (
        error_at(SAMPLERS[sampler], config, n, late_timestep(config)) for n in (50, 100)
    )
    ratio = 4 if sampler in SECOND_ORDER else 2
    if (sampler, config.noise_schedule) == ("heun", "cosine"):
        ratio = 8
    assert coarse / fine == pytest.approx(ratio, rel=0.15)


@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize("config", SCHEDULES.values(), ids=SCHEDULES.keys())
def test_unipc_and_plms_are_far_beyond_second_order(order, config):
    """With 50 steps their error is below a quarter of that of dpmpp_2m with 100."""
    good = error_at(SAMPLERS["dpmpp_2m"], config, 100, late_timestep(config))
    assert error_at(partial(unipc, order=order), config, 50, late_timestep(config)) < good / 4


@pytest.mark.parametrize(
    "config", [SCHEDULES["scaled_linear"], SCHEDULES["zero terminal SNR"]], ids=["plain", "zero"]
)
def test_plms_is_of_second_order(config):
    coarse, fine = (error_at(SAMPLERS["plms"], config, steps, 199) for steps in (50, 100))
    assert coarse / fine == pytest.approx(4, rel=0.15)


@pytest.mark.parametrize("sampler", [dpmpp_2m_sde, dpmpp_3m_sde])
@pytest.mark.parametrize("config", SCHEDULES.values(), ids=SCHEDULES.keys())
def test_without_noise_the_sde_solvers_solve_the_ode(sampler, config):
    ode = partial(sampler, eta=0.0)
    coarse, fine = (error_at(ode, config, steps, late_timestep(config)) for steps in (50, 100))
    assert coarse / fine > 3.4  # second order at least


@pytest.mark.parametrize("sampler", [ddpm, euler_ancestral, dpmpp_2m_sde, dpmpp_3m_sde])
@pytest.mark.parametrize(
    "config",
    [
        pytest.param(config, id=name, marks=[pytest.mark.slow] * (name not in ALWAYS))
        for name, config in SCHEDULES.items()
    ],
)
def test_more_steps_on_one_brownian_path_change_the_result_less(sampler, config):
    schedule = make_schedule(config)
    seeded = SeededNoise((4, 8, 8), range(8), torch.device("cpu"))
    noise, denoise = seeded.initial(), Gaussian(schedule)
    results = [sample(sampler, denoise, noise, schedule, n, seeded.between) for n in (50, 100, 200)]
    changes = [(a - b).std() for a, b in pairwise(results)]
    assert changes[0] < 0.3 * STD and changes[1] < 0.75 * changes[0]
    assert results[-1].std().item() == pytest.approx(STD, rel=0.05)


@pytest.mark.parametrize("config", SCHEDULES.values(), ids=SCHEDULES.keys())
def test_ancestral_sampling_gives_the_variance_of_the_data(config):
    schedule, shape = make_schedule(config), (16, 4, 16, 16)
    off = [
        sample(ddpm, Gaussian(schedule), randn(*shape), schedule, steps, fresh(*shape)).std().item()
        / STD
        for steps in (50, 500)
    ]
    assert off[1] == pytest.approx(1, abs=0.02)
    assert abs(off[1] - 1) < abs(off[0] - 1) / 4  # and it is getting there


def test_ddpm_is_ddim_with_eta_1():
    schedule, shape = make_schedule(ScheduleConfig()), (2, 4, 8, 8)
    denoise = Gaussian(schedule)
    one = sample(ddpm, denoise, randn(*shape), schedule, 20, fresh(*shape))
    other = sample(ddim, denoise, randn(*shape), schedule, 20, fresh(*shape), eta=1.0)
    torch.testing.assert_close(one, other)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_single_step_returns_the_estimate(sampler):
    for config in SCHEDULES.values():
        schedule, noise = make_schedule(config), randn(2, 4, 8, 8)
        result = sample(sampler, lambda z, t: 0.3 * z, noise, schedule, 1)
        torch.testing.assert_close(result, 0.3 * noise)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_an_image_does_not_depend_on_the_others(sampler):
    schedule, noise = make_schedule(ScheduleConfig(zero_terminal_snr=True)), randn(3, 4, 8, 8)

    def denoise(z_t, t):
        return (z_t + t[:, None, None, None] / 1000).sin()

    def draw(rows):
        generators = [torch.Generator().manual_seed(row) for row in rows]
        return lambda *_: torch.stack([torch.randn(4, 8, 8, generator=g) for g in generators])

    together = sample(sampler, denoise, noise, schedule, 7, draw([0, 1, 2]))
    for k in range(3):
        alone = sample(sampler, denoise, noise[k : k + 1], schedule, 7, draw([k]))
        assert torch.equal(alone[0], together[k])


@pytest.mark.parametrize("name", SAMPLERS)
def test_dtype_and_number_of_network_calls(name):
    schedule, noise, calls = make_schedule(ScheduleConfig()), randn(2, 4, 8, 8), []

    def denoise(z_t, t):
        calls.append(t.tolist())
        return 0.5 * z_t

    result = sample(name, denoise, noise, schedule, 3, fresh(2, 4, 8, 8))
    assert result.dtype == torch.float32
    assert [t for t in calls if t[0] in (999, 666, 332)][:1] == [[999, 999]]
    # two calls a step, but one in the last; PLMS makes two in its first
    extra = 2 if name in CALLS_PER_STEP else 1 if name == "plms" else 0
    assert len(calls) == 3 + extra
    if not extra:
        assert calls == [[999, 999], [666, 666], [332, 332]]


def test_stochastic_samplers_need_draw_noise():
    schedule = make_schedule(ScheduleConfig())
    with pytest.raises(UserError, match="draw_noise"):
        sample(ddpm, lambda z, t: z, randn(1, 4, 2, 2), schedule, 3)


def test_an_unknown_name_is_answered_with_the_nearest():
    assert find_sampler("ddim") is ddim
    with pytest.raises(ValueError, match="dpmpp_2m"):
        find_sampler("DPM++_2M")
    with pytest.raises(ValueError, match="ddim, ddpm"):
        find_sampler("rk45")
