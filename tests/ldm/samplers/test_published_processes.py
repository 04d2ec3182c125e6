"""The processes of docs/processes.md are those of their papers, with the papers' settings.

They are compared with closed forms, and with the schedulers of diffusers from the same noise.
"""

import math

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler

from ldm.denoiser import Denoiser, convert
from ldm.loss import ObjectiveConfig, sample_timesteps
from ldm.pipeline.sampling import clipped
from ldm.schedule import RectifiedFlow, ScheduleConfig, linear, make_schedule
from tests.helpers.sampling import randn, sample

# diffusers has not followed NumPy here
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
DDPM = ScheduleConfig(noise_schedule="linear", beta_start=1e-4, beta_end=0.02)
COSINE = ScheduleConfig(noise_schedule="cosine")
PEERS = {
    "linear": {"beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"},
    "cosine": {"beta_schedule": "squaredcos_cap_v2"},
}
SHAPE = (2, 2, 3, 3)
STD = 0.5


class IdealNoise(torch.nn.Module):
    """The ideal prediction of noise for data near -1 or 1, which is not linear."""

    def __init__(self, schedule):
        super().__init__()
        self.schedule = schedule

    def forward(self, z_t, t, context=None):
        alpha, sigma = self.schedule(t)
        variance = 0.09 * alpha**2 + sigma**2
        z_0 = (0.09 * alpha * z_t + sigma**2 * torch.tanh(alpha * z_t / variance)) / variance
        return convert(z_0, "sample", "noise", z_t, alpha, sigma)


def noise_of_steps(seed: int = 7):
    generator = torch.Generator().manual_seed(seed)
    return lambda *_: torch.randn(SHAPE, generator=generator)


def run(scheduler, schedule, steps: int) -> torch.Tensor:
    """Draw with a scheduler of diffusers, and with our noise in every step."""
    scheduler.alphas_cumprod = schedule.alpha_bar  # in float64, where diffusers has float32
    scheduler.betas = 1 - schedule.alpha_bar / torch.cat([torch.ones(1), schedule.alpha_bar[:-1]])
    scheduler.one = torch.ones((), dtype=torch.float64)
    scheduler.final_alpha_cumprod = torch.ones((), dtype=torch.float64)
    scheduler.set_timesteps(steps)
    network, z = IdealNoise(schedule), randn(*SHAPE)
    generator = torch.Generator().manual_seed(7)
    for t in scheduler.timesteps:
        output = network(z.float(), t.expand(len(z)))
        z = scheduler.step(output, t, z, generator=generator).prev_sample
    return z.float()


@pytest.mark.parametrize("name", PEERS)
def test_the_tables_are_those_of_diffusers(name):
    ours = make_schedule({"linear": DDPM, "cosine": COSINE}[name]).alpha_bar
    theirs = DDPMScheduler(**PEERS[name]).alphas_cumprod.double()
    torch.testing.assert_close(ours, theirs, rtol=2e-4, atol=1e-8)


@pytest.mark.parametrize("name", PEERS)
def test_ancestral_sampling_in_all_1000_steps_is_that_of_diffusers(name):
    """Ho et al. 2020, algorithm 2, on their schedule, and on that of Nichol & Dhariwal 2021."""
    schedule = make_schedule({"linear": DDPM, "cosine": COSINE}[name])
    denoiser = Denoiser(IdealNoise(schedule), schedule, "noise")
    ours = sample("ddpm", denoiser, randn(*SHAPE), schedule, 1000, noise_of_steps())
    theirs = run(DDPMScheduler(**PEERS[name], clip_sample=False), schedule, 1000)
    assert (ours - theirs).abs().max() < 1e-3
    other = sample("ddpm", denoiser, randn(*SHAPE), schedule, 1000, noise_of_steps(seed=8))
    assert (other - theirs).abs().max() > 0.1


@pytest.mark.parametrize("name", PEERS)
def test_estimates_are_clipped_as_by_diffusers(name):
    """Ho et al. 2020 clip to the range of pixels; here the ideal estimates go up to about 1."""
    schedule = make_schedule({"linear": DDPM, "cosine": COSINE}[name])
    denoiser, clip = Denoiser(IdealNoise(schedule), schedule, "noise"), clipped(lambda z: z, 0.6)
    ours, unclipped = (
        sample("ddpm", denoise, randn(*SHAPE), schedule, 100, noise_of_steps())
        for denoise in (lambda z, t: clip(denoiser(z, t)), denoiser)
    )
    options = {"clip_sample": True, "clip_sample_range": 0.6, "timestep_spacing": "trailing"}
    theirs = run(DDPMScheduler(**PEERS[name], **options), schedule, 100)
    assert (ours - theirs).abs().max() < 1e-3
    assert (ours - unclipped).abs().max() > 0.1


def test_ddim_of_the_linear_schedule_is_that_of_diffusers():
    """Song et al. 2021 (DDIM), eq. 12 with eta = 0: the same network, in 50 of the 1000 steps."""
    schedule = make_schedule(DDPM)
    denoiser = Denoiser(IdealNoise(schedule), schedule, "noise")
    ours = sample("ddim", denoiser, randn(*SHAPE), schedule, 50)
    options = {"clip_sample": False, "timestep_spacing": "trailing"}
    theirs = run(DDIMScheduler(**PEERS["linear"], **options), schedule, 50)
    assert (ours - theirs).abs().max() < 1e-4


def test_the_linear_schedule_is_the_variance_preserving_sde():
    """Song et al. 2021 (score SDE), eq. 33: alpha_bar(t) of beta from 0.1 to 20, t from 0 to 1.

    1000 steps of it lose the second order: log(1 - beta) is -beta - beta^2 / 2.
    """
    t = torch.arange(1, 1001, dtype=torch.float64) / 1000
    exact = -0.5 * t**2 * (20 - 0.1) - 0.1 * t
    beta = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    ours = linear(1e-4, 0.02).log() + (beta**2 / 2).cumsum(0)
    # What is left is the sum in place of the integral, and beta^3.
    torch.testing.assert_close(ours, exact, rtol=2e-2, atol=1e-4)
    assert ours[-1].item() == pytest.approx(exact[-1].item(), rel=2e-3)


@pytest.mark.parametrize("sampler", ["heun", "dpm_2", "ddim"])
def test_the_probability_flow_of_the_sde_ends_at_the_data(sampler):
    """For Gaussian data the ODE (eq. 13 of score SDE) only rescales the noise."""
    schedule = make_schedule(DDPM)

    def denoise(z_t, t):
        alpha, sigma = schedule(t)
        return alpha * STD**2 / (alpha**2 * STD**2 + sigma**2) * z_t

    alpha, sigma = schedule(torch.tensor([999]))
    exact = randn(*SHAPE) * STD / (alpha**2 * STD**2 + sigma**2).sqrt()
    found = sample(sampler, denoise, randn(*SHAPE), schedule, 500)
    assert (found - exact).norm() / exact.norm() < 0.02


def generators(count: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(k) for k in range(count)]


def test_continuous_times_are_real_and_uniform():
    schedule, objective = make_schedule(DDPM), ObjectiveConfig(times="continuous")
    t = sample_timesteps(schedule, objective, generators(4000))
    assert t.is_floating_point() and t.min() >= 0 and t.max() <= 999
    assert (t % 1 > 0).float().mean() > 0.99
    assert t.mean().item() == pytest.approx(499.5, abs=4 * 999 / math.sqrt(12 * 4000))
    assert all(scale.isfinite().all() for scale in schedule(t))
    flow = RectifiedFlow()
    uniform = sample_timesteps(flow, ObjectiveConfig(), generators(9))
    assert torch.equal(sample_timesteps(flow, objective, generators(9)), uniform)
