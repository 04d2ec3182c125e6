"""Samplers against diffusers' schedulers: the same latents after the last step, to 1e-4.

Its schedulers are driven by the network, ours by the denoiser around it, from the same noise over
the same times.
"""

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
)

from ldm.denoiser import Denoiser, convert
from ldm.samplers import ddim, ddpm, dpmpp_2m, euler
from ldm.schedule import NoiseSchedule, RectifiedFlow, scaled_linear, zero_terminal_snr

# diffusers has not followed NumPy here
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def fresh(*shape: int, seed: int = 5):
    generator = torch.Generator().manual_seed(seed)
    return lambda: torch.randn(*shape, generator=generator)


class Blobs(torch.nn.Module):
    """The ideal network for pixels near -1 or 1: no line, but as stable as a trained one."""

    def __init__(self, schedule, prediction):
        super().__init__()
        self.schedule, self.prediction = schedule, prediction

    def forward(self, z_t, t, context=None):
        alpha, sigma = self.schedule(t.clamp(min=1))
        variance = 0.09 * alpha**2 + sigma**2
        z_0 = (0.09 * alpha * z_t + sigma**2 * torch.tanh(alpha * z_t / variance)) / variance
        return convert(z_0, "sample", self.prediction, z_t, alpha, sigma)


SHAPE = (2, 4, 6, 6)
NAMES = {
    "noise": "epsilon",
    "velocity": "v_prediction",
    "sample": "sample",
    "flow": "flow_prediction",
}
TABLES = [(False, "noise"), (False, "velocity"), (False, "sample"), (True, "velocity")]
FEW, MANY = [1, 2, 3, 10, 50], [999, 1000]
CASES = [
    *((zero, prediction, steps) for zero, prediction in TABLES for steps in FEW),
    *((False, "noise", steps) for steps in MANY),
]


def table(zero: bool) -> torch.Tensor:
    alpha_bar = scaled_linear(0.00085, 0.012)
    return zero_terminal_snr(alpha_bar) if zero else alpha_bar


def peer(kind: type, zero: bool, prediction: str, **options):
    """A scheduler of diffusers, with the table that it would have in float64."""
    scheduler = kind(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type=NAMES[prediction],
        timestep_spacing="trailing",
        rescale_betas_zero_snr=zero,
        **options,
    )
    scheduler.alphas_cumprod = table(zero)
    return scheduler


def run_peer(scheduler, network, steps: int, **options) -> torch.Tensor:
    scheduler.set_timesteps(steps)
    z = randn(*SHAPE) * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        output = network(scheduler.scale_model_input(z, t), t.expand(len(z)))
        z = scheduler.step(output, t, z, **options).prev_sample
    return z.float()


def parts(schedule, prediction):
    network = Blobs(schedule, prediction)
    return network, Denoiser(network, schedule, prediction)


def assert_equal(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


# diffusers' DDIM goes to t - 1000 // steps, which else is not the next of its own times.
@pytest.mark.parametrize(
    ("zero", "prediction", "steps"), [case for case in CASES if 1000 % case[2] == 0]
)
def test_ddim_equals_diffusers(zero, prediction, steps):
    network, denoiser = parts(NoiseSchedule(table(zero)), prediction)
    scheduler = peer(DDIMScheduler, zero, prediction, clip_sample=False)
    ours = ddim(denoiser, randn(*SHAPE), denoiser.schedule, steps)
    assert_equal(ours, run_peer(scheduler, network, steps))


@pytest.mark.parametrize("steps", [1, 2, 10, 50])
def test_stochastic_ddim_equals_diffusers(steps):
    network, denoiser = parts(NoiseSchedule(table(False)), "velocity")
    scheduler = peer(DDIMScheduler, False, "velocity", clip_sample=False)
    ours = ddim(denoiser, randn(*SHAPE), denoiser.schedule, steps, fresh(*SHAPE), eta=0.7)
    generator = torch.Generator().manual_seed(5)
    assert_equal(ours, run_peer(scheduler, network, steps, eta=0.7, generator=generator))


@pytest.mark.parametrize(("zero", "prediction", "steps"), CASES)
def test_ddpm_equals_diffusers(zero, prediction, steps):
    network, denoiser = parts(NoiseSchedule(table(zero)), prediction)
    scheduler = peer(DDPMScheduler, zero, prediction, clip_sample=False)
    alpha_bar = table(zero)
    scheduler.betas = 1 - alpha_bar / torch.cat([torch.ones(1), alpha_bar[:-1]])
    scheduler.one = torch.ones((), dtype=torch.float64)
    ours = ddpm(denoiser, randn(*SHAPE), denoiser.schedule, steps, fresh(*SHAPE))
    generator = torch.Generator().manual_seed(5)
    assert_equal(ours, run_peer(scheduler, network, steps, generator=generator))


# diffusers' Euler takes no sample, and at zero terminal SNR is exact only to 4e-4: its latents
# are z / alpha there, with alpha = 2^-12.
@pytest.mark.parametrize(
    ("prediction", "steps"),
    [
        (prediction, steps)
        for zero, prediction, steps in CASES
        if not zero and prediction != "sample"
    ],
)
def test_euler_equals_diffusers(prediction, steps):
    network, denoiser = parts(NoiseSchedule(table(False)), prediction)
    scheduler = peer(EulerDiscreteScheduler, False, prediction)
    ours = euler(denoiser, randn(*SHAPE), denoiser.schedule, steps, start_at_sigma=True)
    assert_equal(ours, run_peer(scheduler, network, steps))


@pytest.mark.parametrize(("zero", "prediction", "steps"), CASES)
def test_dpmpp_2m_equals_diffusers(zero, prediction, steps):
    alpha_bar = table(zero)
    alpha_bar[-1].clamp_(min=2**-24)  # diffusers' lambda must not be infinite; ours may
    network, denoiser = parts(NoiseSchedule(alpha_bar), prediction)
    scheduler = peer(DPMSolverMultistepScheduler, zero, prediction)
    scheduler.alphas_cumprod = alpha_bar
    ours = dpmpp_2m(denoiser, randn(*SHAPE), denoiser.schedule, steps)
    assert_equal(ours, run_peer(scheduler, network, steps))


@pytest.mark.parametrize("steps", FEW)
@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("prediction", ["flow", "sample", "noise"])
def test_flow_equals_diffusers(prediction, shift, steps):
    network, denoiser = parts(RectifiedFlow(shift), prediction)
    for order, samplers in ((2, [dpmpp_2m]), (1, [ddim, euler])):
        theirs = run_peer(flow_peer(prediction, shift, order), network, steps)
        for sampler in samplers:
            assert_equal(sampler(denoiser, randn(*SHAPE), denoiser.schedule, steps), theirs)


@pytest.mark.parametrize("steps", MANY)
def test_flow_equals_diffusers_over_many_steps(steps):
    network, denoiser = parts(RectifiedFlow(), "flow")
    ours = dpmpp_2m(denoiser, randn(*SHAPE), denoiser.schedule, steps)
    assert_equal(ours, run_peer(flow_peer("flow", 1.0, 2), network, steps))


def flow_peer(prediction: str, shift: float, order: int) -> DPMSolverMultistepScheduler:
    return DPMSolverMultistepScheduler(
        prediction_type=NAMES[prediction],
        use_flow_sigmas=True,
        flow_shift=shift,
        solver_order=order,
    )
