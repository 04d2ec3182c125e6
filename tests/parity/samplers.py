"""Differences of our samplers from diffusers' schedulers and from k-diffusion's formulas.

All start from the same noise and use the same times. Schedulers call the network, our samplers the
denoiser around it. RUNS[row][run]() returns the largest absolute difference after the last step.
"""

from collections.abc import Callable
from functools import partial
from itertools import pairwise

import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    LCMScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)
from torch import Tensor

from ldm.denoiser import Denoiser, convert
from ldm.samplers import (
    ddim,
    ddpm,
    dpm_2,
    dpmpp_2m,
    dpmpp_2m_sde,
    dpmpp_2s,
    dpmpp_3m_sde,
    euler,
    euler_ancestral,
    heun,
    lcm,
    plms,
    unipc,
)
from ldm.schedule import NoiseSchedule, RectifiedFlow, rescale_zero_terminal_snr, scaled_linear
from tests.helpers.sampling import sample

SHAPE = (2, 4, 6, 6)
NAMES = {
    "noise": "epsilon",
    "velocity": "v_prediction",
    "sample": "sample",
    "flow": "flow_prediction",
}


def randn(seed: int = 0) -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))


def fresh_noise() -> Callable[..., Tensor]:
    generator = torch.Generator().manual_seed(5)
    return lambda *_: torch.randn(SHAPE, generator=generator)


class Blobs(torch.nn.Module):
    """The ideal network for pixels near -1 or 1: not linear, but as stable as a trained one."""

    def __init__(self, schedule, prediction):
        super().__init__()
        self.schedule, self.prediction = schedule, prediction

    def forward(self, z_t, t, context=None):
        alpha, sigma = self.schedule(t.clamp(min=1))
        variance = 0.09 * alpha**2 + sigma**2
        z_0 = (0.09 * alpha * z_t + sigma**2 * torch.tanh(alpha * z_t / variance)) / variance
        return convert(z_0, "sample", self.prediction, z_t, alpha, sigma)


def parts(schedule, prediction: str) -> tuple[Blobs, Denoiser]:
    network = Blobs(schedule, prediction)
    return network, Denoiser(network, schedule, prediction)


def difference(ours: Tensor, theirs: Tensor) -> float:
    return (ours - theirs).abs().max().item()


def table(zero: bool) -> Tensor:
    alpha_bar = scaled_linear(0.00085, 0.012)
    return rescale_zero_terminal_snr(alpha_bar) if zero else alpha_bar


def peer(kind: type, zero: bool, prediction: str, **options):
    """Make a scheduler of diffusers with its table in float64."""
    scheduler = kind(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type=NAMES[prediction],
        timestep_spacing="trailing",
        **({"rescale_betas_zero_snr": True} if zero else {}),
        **options,
    )
    scheduler.alphas_cumprod = table(zero)
    return scheduler


def run_peer(scheduler, network, steps: int, **options) -> Tensor:
    scheduler.set_timesteps(steps)
    z = randn() * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        output = network(scheduler.scale_model_input(z, t), t.expand(len(z)))
        z = scheduler.step(output, t, z, **options).prev_sample
    return z.float()


def against_ddim(zero: bool, prediction: str, steps: int, eta: float = 0.0) -> float:
    network, denoiser = parts(NoiseSchedule(table(zero)), prediction)
    scheduler = peer(DDIMScheduler, zero, prediction, clip_sample=False)
    ours = sample(ddim, denoiser, randn(), denoiser.schedule, steps, fresh_noise(), eta=eta)
    generator = torch.Generator().manual_seed(5)
    return difference(ours, run_peer(scheduler, network, steps, eta=eta, generator=generator))


def against_ddpm(zero: bool, prediction: str, steps: int) -> float:
    network, denoiser = parts(NoiseSchedule(table(zero)), prediction)
    scheduler = peer(DDPMScheduler, zero, prediction, clip_sample=False)
    alpha_bar = table(zero)
    scheduler.betas = 1 - alpha_bar / torch.cat([torch.ones(1), alpha_bar[:-1]])
    scheduler.one = torch.ones((), dtype=torch.float64)
    ours = sample(ddpm, denoiser, randn(), denoiser.schedule, steps, fresh_noise())
    generator = torch.Generator().manual_seed(5)
    return difference(ours, run_peer(scheduler, network, steps, generator=generator))


def against_euler(prediction: str, steps: int) -> float:
    network, denoiser = parts(NoiseSchedule(table(False)), prediction)
    scheduler = peer(EulerDiscreteScheduler, False, prediction)
    ours = sample(euler, denoiser, randn(), denoiser.schedule, steps, start_at_sigma=True)
    return difference(ours, run_peer(scheduler, network, steps))


def against_dpm_solver(samplers: list, order: int, zero: bool, prediction: str, steps: int):
    alpha_bar = table(zero)
    alpha_bar[-1].clamp_(min=2**-24)  # diffusers' lambda must not be infinite; ours may
    network, denoiser = parts(NoiseSchedule(alpha_bar), prediction)
    scheduler = peer(DPMSolverMultistepScheduler, zero, prediction, solver_order=order)
    scheduler.alphas_cumprod = alpha_bar
    theirs = run_peer(scheduler, network, steps)
    ours = [sample(sampler, denoiser, randn(), denoiser.schedule, steps) for sampler in samplers]
    return max(difference(z, theirs) for z in ours)


def against_flow(samplers: list, order: int, prediction: str, shift: float, steps: int) -> float:
    network, denoiser = parts(RectifiedFlow(shift), prediction)
    scheduler = DPMSolverMultistepScheduler(
        prediction_type=NAMES[prediction],
        use_flow_sigmas=True,
        flow_shift=shift,
        solver_order=order,
    )
    theirs = run_peer(scheduler, network, steps)
    ours = [sample(sampler, denoiser, randn(), denoiser.schedule, steps) for sampler in samplers]
    return max(difference(z, theirs) for z in ours)


def against_scheduler(
    kind: type, sampler: Callable, prediction: str, steps: int, options: dict, theirs: dict
) -> float:
    """Compare on the schedule of Stable Diffusion.

    options: those of our sampler; theirs: those of the scheduler.
    """
    network, denoiser = parts(NoiseSchedule(table(False)), prediction)
    scheduler = peer(kind, False, prediction, **theirs)
    ours = sample(sampler, denoiser, randn(), denoiser.schedule, steps, fresh_noise(), **options)
    drawn = {"generator": torch.Generator().manual_seed(5)} if sampler in STOCHASTIC else {}
    return difference(ours, run_peer(scheduler, network, steps, **drawn))


def against_unipc(order: int, shift: float | None, prediction: str, steps: int) -> float:
    """Compare on a flow with this shift, or, for None, on the schedule of Stable Diffusion."""
    schedule = NoiseSchedule(table(False)) if shift is None else RectifiedFlow(shift)
    network, denoiser = parts(schedule, prediction)
    options = {"solver_order": order, "final_sigmas_type": "zero"}
    if shift is None:
        scheduler = peer(UniPCMultistepScheduler, False, prediction, **options)
    else:
        scheduler = UniPCMultistepScheduler(
            prediction_type=NAMES[prediction], use_flow_sigmas=True, flow_shift=shift, **options
        )
    theirs = run_peer(scheduler, network, steps)
    # On a flow it begins at noise alone, or a millionth before, where its other solvers do not.
    times = steps if shift is None else 1000 * scheduler.sigmas[:-1].double()
    ours = sample(unipc, denoiser, randn(), schedule, times, order=order)
    return difference(ours, theirs)


def against_lcm(prediction: str, steps: int) -> float:
    """Compare at the scheduler's times, which are some of the 50 of the distillation."""
    network, denoiser = parts(NoiseSchedule(table(False)), prediction)
    scheduler = LCMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        prediction_type=NAMES[prediction],
        clip_sample=False,
    )
    scheduler.alphas_cumprod = table(False)
    scheduler.set_timesteps(steps)
    times = scheduler.timesteps.clone()
    ours = sample(lcm, denoiser, randn(), denoiser.schedule, times, fresh_noise(), boundary=True)
    generator = torch.Generator().manual_seed(5)
    return difference(ours, run_peer(scheduler, network, steps, generator=generator))


def dpm_solver_of_k_diffusion(denoise, sigmas: Tensor, kind: str) -> Tensor:
    """Run a DPM-Solver++ in k-diffusion's variables.

    Args:
        denoise: (x, sigma) -> z_0.
        kind: "2" is DPM-Solver-2, "2s" DPM-Solver++ of Lu et al. 2022; "2m_sde" and "3m_sde" are
            stochastic.
    """
    x, draw_noise, known, hs = sigmas[0] * randn().double(), fresh_noise(), [], []
    for sigma, lower in pairwise(sigmas):
        z_0 = denoise(x, sigma)
        if lower == 0:
            return z_0.float()
        h = (sigma / lower).log()
        if kind in ("2", "2s"):
            middle = (sigma * lower).sqrt()
            half = middle / sigma * x - torch.expm1(-h / 2) * z_0
        if kind == "2":
            x = x + (lower - sigma) * (half - denoise(half, middle)) / middle
            continue
        if kind == "2s":
            x = lower / sigma * x - torch.expm1(-h) * denoise(half, middle)
            continue
        x = (-2 * h).exp() * x - torch.expm1(-2 * h) * z_0
        if kind == "2m_sde" and known:
            x = x - 0.5 * torch.expm1(-2 * h) * h / hs[-1] * (z_0 - known[-1])
        phi_2 = torch.expm1(-2 * h) / (2 * h) + 1
        phi_3 = phi_2 / (2 * h) - 0.5
        if kind == "3m_sde" and len(known) == 1:
            x = x + phi_2 * (z_0 - known[-1]) / (hs[-1] / h)
        elif kind == "3m_sde" and known:
            r0, r1 = hs[-1] / h, hs[-2] / h
            d0, d1 = (z_0 - known[-1]) / r0, (known[-1] - known[-2]) / r1
            first, second = d0 + (d0 - d1) * r0 / (r0 + r1), (d0 - d1) / (r0 + r1)
            x = x + phi_2 * first - phi_3 * second
        x = x + lower * (-torch.expm1(-2 * h)).sqrt() * draw_noise()
        known.append(z_0)
        hs.append(h)
    raise AssertionError("the sigmas must end in 0")


def against_dpm_solver_of_k_diffusion(sampler, kind: str, schedule, prediction, steps) -> float:
    _, denoiser = parts(schedule, prediction)
    alpha, sigma = schedule.exact(schedule.timesteps(steps))

    def denoise(x: Tensor, level: Tensor) -> Tensor:
        """Denoise at a noise level between those of the table, whose time is interpolated."""
        t = schedule.timesteps_of_ratio(level[None])
        a, _ = schedule.exact(t)
        return denoiser((a * x).float(), t.float().expand(len(x))).double()

    theirs = dpm_solver_of_k_diffusion(denoise, torch.cat([sigma / alpha, torch.zeros(1)]), kind)
    ours = sample(sampler, denoiser, randn(), schedule, steps, fresh_noise(), start_at_sigma=True)
    return difference(ours, theirs)


def k_diffusion(denoise, sigmas: Tensor, ancestral: bool, multistep: bool) -> Tensor:
    """Run Euler steps or DPM-Solver++ (2M) in k-diffusion's variables.

    They are x = z / alpha at noise sigma / alpha; the ODE is x' = (x - z_0) / sigma. Euler steps
    are those of Karras et al. 2022 (arXiv:2206.00364). DPM-Solver++ (2M) is that of Lu et al. 2022
    (arXiv:2211.01095), with lambda = -log(sigma).

    Args:
        denoise: (x, i) -> z_0 at sigmas[i].
        ancestral: whether steps go to a lower sigma, and back by fresh noise.
        multistep: whether to use DPM-Solver++ (2M).
    """
    x, draw_noise, previous = sigmas[0] * randn().double(), fresh_noise(), None
    for i, (sigma, lower) in enumerate(pairwise(sigmas)):
        z_0 = ahead = denoise(x, i)
        if multistep and previous is not None and lower > 0:
            ratio = (sigma / lower).log() / (sigmas[i - 1] / sigma).log()
            ahead = z_0 + ratio / 2 * (z_0 - previous)
        up = (lower * (1 - (lower / sigma) ** 2).sqrt()) if ancestral else 0 * lower
        down = (lower**2 - up**2).sqrt()
        x = x + (down - sigma) / sigma * (x - ahead)
        if up > 0:
            x = x + up * draw_noise()
        previous = z_0
    return x.float()


def against_k_diffusion(samplers: dict, schedule, prediction: str, steps: int, **kind) -> float:
    """Compare samplers, each with its additional arguments."""
    _, denoiser = parts(schedule, prediction)
    times = schedule.timesteps(steps)
    alpha, sigma = schedule.exact(times)

    def denoise(x: Tensor, i: int) -> Tensor:
        return denoiser((alpha[i] * x).float(), times[i].expand(len(x))).double()

    theirs = k_diffusion(denoise, torch.cat([sigma / alpha, torch.zeros(1)]), **kind)
    return max(
        difference(
            sample(
                sampler,
                denoiser,
                randn(),
                schedule,
                steps,
                fresh_noise(),
                start_at_sigma=True,
                **options,
            ),
            theirs,
        )
        for sampler, options in samplers.items()
    )


STOCHASTIC = (dpmpp_2m_sde, euler_ancestral)
AT_SIGMA = {"start_at_sigma": True}
FEW, MANY = [1, 2, 3, 10, 50], [999, 1000]
TABLES = [(False, "noise"), (False, "velocity"), (False, "sample"), (True, "velocity")]
CASES = [
    *((zero, prediction, steps) for zero, prediction in TABLES for steps in FEW),
    *((False, "noise", steps) for steps in MANY),
]
FLOWS = [
    *(
        (prediction, shift, k)
        for prediction in NAMES
        if prediction != "velocity"
        for shift in (1.0, 3.0)
        for k in FEW
    ),
    *(("flow", 1.0, steps) for steps in MANY),
]
VP, FLOW = NoiseSchedule(table(False)), RectifiedFlow()
PATHS = [(VP, "noise"), (VP, "velocity"), (FLOW, "flow")]
K_CASES = [
    *((schedule, prediction, steps) for schedule, prediction in PATHS for steps in FEW),
    *((VP, "noise", steps) for steps in MANY),
    *((FLOW, "flow", steps) for steps in MANY),
]


SOLVED = [
    *((prediction, steps) for prediction in ("noise", "velocity") for steps in FEW),
    *(("noise", steps) for steps in MANY),
]
WHOLE = [case for case in SOLVED if 1000 % case[1] == 0]  # strides


def runs(function: Callable[..., float], cases: list[tuple], **options) -> dict:
    """Bind a function to each case, by a name made of the case's values."""
    named = {}
    for case in cases:
        words = [
            word if isinstance(word, int | str | float) else type(word).__name__ for word in case
        ]
        named["-".join(map(str, words))] = partial(function, *case, **options)
    return named


PNDM = {"skip_prk_steps": True, "set_alpha_to_one": True}
SDE = {"algorithm_type": "sde-dpmsolver++", "solver_order": 2}
RUNS = {
    # diffusers' goes to t - 1000 // steps, which else is not the next of its own times
    "ddim, DDIMScheduler": runs(against_ddim, [case for case in CASES if 1000 % case[2] == 0]),
    "ddim with eta = 0.7, DDIMScheduler": runs(
        against_ddim, [(False, "velocity", steps) for steps in (1, 2, 10, 50, 1000)], eta=0.7
    ),
    "ddpm, DDPMScheduler": runs(against_ddpm, CASES),
    # diffusers' takes no sample, and at zero terminal SNR is exact only to 4e-4: its latents are
    # z / alpha there, with alpha = 2^-12
    "euler, EulerDiscreteScheduler": runs(
        against_euler, [case[1:] for case in CASES if not case[0] and case[1] != "sample"]
    ),
    "ddim and euler, DPMSolverMultistepScheduler of order 1": runs(
        partial(against_dpm_solver, [ddim, euler], 1), CASES
    ),
    "dpmpp_2m, DPMSolverMultistepScheduler": runs(
        partial(against_dpm_solver, [dpmpp_2m], 2), CASES
    ),
    "ddim and euler on the flow, DPMSolverMultistepScheduler of order 1": runs(
        partial(against_flow, [ddim, euler], 1), FLOWS
    ),
    "dpmpp_2m on the flow, DPMSolverMultistepScheduler": runs(
        partial(against_flow, [dpmpp_2m], 2), FLOWS
    ),
    "euler and ddim, Euler of k-diffusion": runs(
        partial(against_k_diffusion, {euler: {}, ddim: {}}),
        K_CASES,
        ancestral=False,
        multistep=False,
    ),
    "ddpm, euler_a and ddim with eta = 1, Euler ancestral of k-diffusion": runs(
        partial(against_k_diffusion, {ddpm: {}, euler_ancestral: {}, ddim: {"eta": 1.0}}),
        K_CASES,
        ancestral=True,
        multistep=False,
    ),
    "dpmpp_2m, DPM-Solver++ (2M) of k-diffusion": runs(
        partial(against_k_diffusion, {dpmpp_2m: {}}), K_CASES, ancestral=False, multistep=True
    ),
    # diffusers' extrapolates the network's output, ours the slope, which is the noise
    "plms, PNDMScheduler": runs(
        lambda prediction, steps: against_scheduler(
            PNDMScheduler, plms, prediction, steps, {}, PNDM
        ),
        [case for case in WHOLE if case[0] == "noise"],
    ),
    "heun, HeunDiscreteScheduler": runs(
        lambda prediction, steps: against_scheduler(
            HeunDiscreteScheduler, heun, prediction, steps, AT_SIGMA, {}
        ),
        SOLVED,
    ),
    "euler_a, EulerAncestralDiscreteScheduler": runs(
        lambda prediction, steps: against_scheduler(
            EulerAncestralDiscreteScheduler, euler_ancestral, prediction, steps, AT_SIGMA, {}
        ),
        [case for case in SOLVED if case[1] != 999],  # where its own rounding reaches 1.1e-4
    ),
    "dpmpp_2m_sde, DPMSolverMultistepScheduler": runs(
        lambda prediction, steps: against_scheduler(
            DPMSolverMultistepScheduler, dpmpp_2m_sde, prediction, steps, {}, SDE
        ),
        # With 1000 steps its own rounding reaches 1.6e-4 on some processors.
        [case for case in SOLVED if case != ("noise", 1000)],
    ),
    "unipc of order 2 and 3, UniPCMultistepScheduler": runs(
        against_unipc,
        [(order, None, *case) for order in (2, 3) for case in SOLVED]
        # diffusers' stops where its whole times repeat, as they do at 999 steps and more
        + [(order, 3.0, "flow", steps) for order in (2, 3) for steps in FEW],
    ),
    "lcm, LCMScheduler": runs(against_lcm, [("noise", steps) for steps in (1, 2, 3, 4, 8, 10, 50)]),
    "dpm_2, DPM-Solver-2 of k-diffusion": runs(
        partial(against_dpm_solver_of_k_diffusion, dpm_2, "2"), K_CASES
    ),
    "dpmpp_2s, DPM-Solver++ (2S)": runs(
        partial(against_dpm_solver_of_k_diffusion, dpmpp_2s, "2s"), K_CASES
    ),
    "dpmpp_2m_sde, DPM-Solver++ (2M) SDE of k-diffusion": runs(
        partial(against_dpm_solver_of_k_diffusion, dpmpp_2m_sde, "2m_sde"), K_CASES
    ),
    "dpmpp_3m_sde, DPM-Solver++ (3M) SDE of k-diffusion": runs(
        partial(against_dpm_solver_of_k_diffusion, dpmpp_3m_sde, "3m_sde"), K_CASES
    ),
}
