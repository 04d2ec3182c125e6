"""Samplers against a mixture of Gaussians in the plane, whose denoiser is not linear."""

from functools import partial

import pytest
import torch

from benchmarks.gaussian_mixture import MEANS, STD, WEIGHTS, IdealDenoiser, exact
from ldm.samplers import SAMPLERS, STOCHASTIC, dpmpp_2m_sde, dpmpp_3m_sde, unipc
from ldm.schedule import ScheduleConfig, make_schedule
from tests.helpers.sampling import sample

TABLE, FLOW = ScheduleConfig(), ScheduleConfig(noise_schedule="flow")
SOLVERS = {name: SAMPLERS[name] for name in sorted(SAMPLERS.keys() - STOCHASTIC)}
SOLVERS |= {
    "unipc of order 3": partial(unipc, order=3),
    "dpmpp_2m_sde without noise": partial(dpmpp_2m_sde, eta=0.0),
    "dpmpp_3m_sde without noise": partial(dpmpp_3m_sde, eta=0.0),
}
ORDERS = {"ddim": 1, "euler": 1, "unipc": 3, "unipc of order 3": 4}  # all others 2
# On a flow the first steps are long in log(sigma / alpha) and have no earlier calls to extrapolate
# from; their error is larger than the order of the other steps.
FLOW_RATIOS = {"unipc": (5.0, 9.0), "unipc of order 3": (5.0, 18.0), "plms": (6.5, 9.0)}


def randn(count: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 2, 1, 1, generator=generator).double()


def error(sampler, config: ScheduleConfig, steps: int, time: int) -> float:
    """Return the relative error at the sampler's timestep nearest to `time`."""
    schedule, noise = make_schedule(config), randn(64)
    denoise = IdealDenoiser(schedule)
    sample(sampler, denoise, noise, schedule, steps)
    t = min(denoise.visited, key=lambda visited: abs(visited - time))
    expected = exact(noise, schedule, max(denoise.visited), t)
    return ((denoise.visited[t] - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize(("config", "time"), [(TABLE, 199), (FLOW, 599)], ids=["table", "flow"])
def test_halving_the_step_size_divides_the_error_by_two_to_the_order(name, config, time):
    """Measured at a timestep of both runs; the last step is of first order for all samplers."""
    coarse, fine = (error(SOLVERS[name], config, steps, time) for steps in (100, 200))
    ratio = 2 ** ORDERS.get(name, 2)
    low, high = FLOW_RATIOS.get(name, (0, 0)) if config == FLOW else (0, 0)
    assert low < coarse / fine < high or coarse / fine == pytest.approx(ratio, rel=0.15)


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("config", [TABLE, FLOW], ids=["table", "flow"])
def test_deterministic_samplers_end_in_the_exact_points(name, config):
    schedule, noise = make_schedule(config), randn(64)
    expected = exact(noise, schedule, 999, None)
    result = sample(SOLVERS[name], IdealDenoiser(schedule), noise, schedule, 250)
    assert (result - expected).norm() / expected.norm() < 0.01


@pytest.mark.parametrize("name", sorted(STOCHASTIC - {"lcm"}))
@pytest.mark.parametrize("config", [TABLE, FLOW], ids=["table", "flow"])
def test_stochastic_samplers_draw_from_the_mixture(name, config):
    """Shares of the components, mean and spread are those of the mixture."""
    schedule, count = make_schedule(config), 4000
    generator = torch.Generator().manual_seed(1)
    points = sample(
        SAMPLERS[name],
        IdealDenoiser(schedule),
        randn(count),
        schedule,
        200,
        lambda *_: torch.randn(count, 2, 1, 1, generator=generator).double(),
    ).flatten(1)
    nearest = (points[:, None] - MEANS).norm(dim=-1).argmin(dim=1)
    shares = nearest.bincount(minlength=len(MEANS)) / count
    assert torch.allclose(shares.double(), WEIGHTS, atol=0.03)
    mean, square = WEIGHTS @ MEANS, WEIGHTS @ MEANS.square().sum(dim=1) + 2 * STD**2
    assert torch.allclose(points.mean(dim=0), mean, atol=0.05)
    assert points.square().sum(dim=1).mean().item() == pytest.approx(square.item(), rel=0.05)
