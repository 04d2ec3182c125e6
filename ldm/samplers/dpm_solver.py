"""DPM-Solver and DPM-Solver++: solvers in log(alpha / sigma), with noise and without.

Where log(alpha / sigma) is infinite, that is at the clean end, and at a start with zero terminal
SNR, a step is of first order. With noise, earlier errors are corrected, at the price of more steps;
with that of one Brownian path (`ldm.samplers.noise`), more steps change the picture less and less.
"""

import torch
from jaxtyping import Float64
from torch import Tensor

from foundation.shapes import Denoise, Latents
from ldm.samplers.levels import DrawNoise, NoiseLevels, require_noise

PerStep = Float64[Tensor, " steps"]


@torch.no_grad()
def dpm_2(denoise: Denoise, z: Latents, levels: NoiseLevels) -> Latents:
    """DPM-Solver-2: takes the noise from the middle of each step; second order.

    Two calls per step. The middle is that of log(alpha / sigma): Lu et al. 2022 (arXiv:2206.00927),
    algorithm 1. Where there is none, a step is Euler's. k-diffusion's `sample_dpm_2` is the same.
    """
    time_middle, alpha, sigma = middle_levels(levels)
    for i in range(len(levels)):
        z_0 = denoise(z, levels.time(i, z))
        if not levels.log_snr_step[i].isfinite():
            z = levels.step_towards(z, z_0, i)
            continue
        of_z = sigma[i] / levels.sigma[i]
        z_middle = of_z * z + (alpha[i] - of_z * levels.alpha[i]) * z_0
        z_0 = denoise(z_middle, time_middle[i].expand(len(z)))
        noise = (z_middle - alpha[i] * z_0) / sigma[i]
        growth = levels.alpha[i + 1] / levels.alpha[i]
        z = growth * z + (levels.sigma[i + 1] - growth * levels.sigma[i]) * noise
    return z


def middle_levels(levels: NoiseLevels) -> tuple[PerStep, PerStep, PerStep]:
    """Return time, alpha and sigma in the middle of each step, that of log(alpha / sigma)."""
    ratio = levels.sigma / levels.alpha
    ratio_middle = (ratio[:-1] * ratio[1:]).sqrt().nan_to_num(0)  # nan: 0 times infinity
    time_middle = levels.schedule.timesteps_of_ratio(ratio_middle)
    return time_middle, *levels.schedule.exact(time_middle)


@torch.no_grad()
def dpmpp_2m(denoise: Denoise, z: Latents, levels: NoiseLevels) -> Latents:
    """DPM-Solver++ (2M): extrapolates z_0 from two calls; second order, good from 15 steps on.

    One call per step. Lu et al. 2022 (arXiv:2211.01095), algorithm 2.
    """
    previous = None
    for i in range(len(levels)):
        z_0 = denoise(z, levels.time(i, z))
        z = levels.step_towards(z, levels.extrapolate(z_0, previous, i), i)
        previous = z_0
    return z


@torch.no_grad()
def dpmpp_2s(denoise: Denoise, z: Latents, levels: NoiseLevels) -> Latents:
    """DPM-Solver++ (2S): takes z_0 from the middle of each step; second order.

    Two calls per step. The middle is that of log(alpha / sigma): Lu et al. 2022
    (arXiv:2211.01095), algorithm 1 with r = 1/2. Where there is none, a step is Euler's.
    """
    time_middle, alpha, sigma = middle_levels(levels)
    for i in range(len(levels)):
        z_0 = denoise(z, levels.time(i, z))
        if levels.log_snr_step[i].isfinite():
            of_z = sigma[i] / levels.sigma[i]
            z_middle = of_z * z + (alpha[i] - of_z * levels.alpha[i]) * z_0
            z_0 = denoise(z_middle, time_middle[i].expand(len(z)))
        z = levels.step_towards(z, z_0, i)
    return z


@torch.no_grad()
def dpmpp_2m_sde(
    denoise: Denoise,
    z: Latents,
    levels: NoiseLevels,
    draw_noise: DrawNoise | None = None,
    *,
    eta: float = 1.0,
) -> Latents:
    """SDE-DPM-Solver++ (2M): `dpmpp_2m` with noise; second order in the ODE's part.

    eta: amount of noise, as in k-diffusion; 0 is the ODE.
    One call per step. Lu et al. 2022 (arXiv:2211.01095), appendix A.3.
    """
    previous = None
    for i in range(len(levels)):
        z_0 = denoise(z, levels.time(i, z))
        z = drift(levels, z, levels.extrapolate(z_0, previous, i), i, eta)
        z = add_noise(levels, z, i, eta, draw_noise)
        previous = z_0
    return z


@torch.no_grad()
def dpmpp_3m_sde(
    denoise: Denoise,
    z: Latents,
    levels: NoiseLevels,
    draw_noise: DrawNoise | None = None,
    *,
    eta: float = 1.0,
) -> Latents:
    """SDE-DPM-Solver++ (3M): z_0 as a parabola through three calls; third order in the ODE's part.

    One call per step. k-diffusion's `sample_dpmpp_3m_sde`. Calls that lie infinitely far back in
    log(alpha / sigma), as those from noise alone, are left out.
    """
    h, earlier = levels.log_snr_step, list[Latents]()  # earlier: up to two z_0, the newest first
    for i in range(len(levels)):
        z_0 = denoise(z, levels.time(i, z))
        z = drift(levels, z, z_0, i, eta)
        if earlier and not levels.is_last(i):
            x = h[i] * (1 + eta)
            phi_2 = torch.expm1(-x) / x + 1
            first = (z_0 - earlier[0]) * (h[i] / h[i - 1])  # derivatives, times powers of h
            if len(earlier) > 1:
                near, far = h[i - 1] / h[i], h[i - 2] / h[i]
                before = (earlier[0] - earlier[1]) / far
                second = (first - before) / (near + far)
                phi_3 = phi_2 / x - 0.5
                z = z + levels.alpha[i + 1] * (phi_2 * (first + second * near) - phi_3 * second)
            else:
                z = z + levels.alpha[i + 1] * phi_2 * first
        z = add_noise(levels, z, i, eta, draw_noise)
        earlier = [z_0, *earlier[:1]] if h[i].isfinite() else []
    return z


def drift(levels: NoiseLevels, z: Latents, z_0: Latents, i: int, eta: float) -> Latents:
    """Take step i without its noise; exact if z_0 stays the same. eta = 0: `step_towards`."""
    ratio = levels.snr_ratio[i]
    of_z = levels.sigma[i + 1] / levels.sigma[i] * ratio**eta
    return of_z * z + levels.alpha[i + 1] * (1 - ratio ** (1 + eta)) * z_0


def add_noise(
    levels: NoiseLevels, z: Latents, i: int, eta: float, draw_noise: DrawNoise | None
) -> Latents:
    """Add the noise of step i; none in the last step, which ends in the clean image."""
    if eta == 0 or levels.is_last(i):
        return z
    std = levels.sigma[i + 1] * (1 - levels.snr_ratio[i] ** (2 * eta)).sqrt()
    return z + std * require_noise(draw_noise)(levels.angle[i], levels.angle[i + 1])
