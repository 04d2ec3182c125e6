"""Noise -> latents, knowing nothing of a model but `denoise(z_t, t) -> z_0`.

All go through the same times, noise first (`Schedule.timesteps`), and end in the clean image. Each
solves the probability-flow ODE, or the SDE of the same marginals, of z_t = alpha_t z_0 + sigma_t
noise, and takes one call of `denoise` per step. The formulas divide by no alpha, so that they also
hold at zero terminal SNR, and image k depends on no other image of the batch.

start_at_sigma: begin at sigma_T noise, as k-diffusion's samplers and diffusers' Euler do, not at
noise. Without zero terminal SNR sigma_T is a little below 1, the deviation of latents at any t.
"""

import difflib
from collections.abc import Callable

import torch
from jaxtyping import Float64, Real
from torch import Tensor

from ldm.schedule import Schedule
from ldm.shapes import Denoise, Latents

Levels = Float64[Tensor, " levels"]
Number = Float64[Tensor, ""]  # on the CPU; does not change the dtype of latents it multiplies
DrawNoise = Callable[[], Latents]  # fresh noise, of each image's own generator


def path(
    schedule: Schedule, steps: int, noise: Latents, start_at_sigma: bool
) -> tuple[Latents, Real[Tensor, "steps b"], Levels, Levels]:
    """Where to start, the times of the calls, alpha and sigma there and, last, at the clean end."""
    times = schedule.timesteps(steps)
    alpha, sigma = schedule.exact(times)
    z = sigma[0] * noise if start_at_sigma else noise
    alpha, sigma = torch.cat([alpha, alpha.new_ones(1)]), torch.cat([sigma, sigma.new_zeros(1)])
    return z, times.to(noise.device)[:, None].expand(-1, len(noise)), alpha, sigma


@torch.no_grad()
def ddim(
    denoise: Denoise,
    noise: Latents,
    schedule: Schedule,
    steps: int = 50,
    draw_noise: DrawNoise | None = None,
    *,
    eta: float = 0.0,
    start_at_sigma: bool = False,
) -> Latents:
    """Goes to z_0 and back along the noise that leads there; first order.

    eta: share of fresh noise, from 0, deterministic, to 1, the ancestral sampler of DDPM.
    Song et al. 2021 (arXiv:2010.02502), eq. 12 and 16.
    """
    z, times, alpha, sigma = path(schedule, steps, noise, start_at_sigma)
    for i, t in enumerate(times):
        z_0 = denoise(z, t)
        eps = (z - alpha[i] * z_0) / sigma[i]
        std = eta * posterior_std(alpha[i], sigma[i], alpha[i + 1], sigma[i + 1])
        z = alpha[i + 1] * z_0 + (sigma[i + 1] ** 2 - std**2).sqrt() * eps
        if eta > 0 and i < steps - 1:  # the last step goes to the clean end, where std is 0
            z = z + std * fresh(draw_noise)
    return z


@torch.no_grad()
def ddpm(
    denoise: Denoise,
    noise: Latents,
    schedule: Schedule,
    steps: int = 250,
    draw_noise: DrawNoise | None = None,
    *,
    start_at_sigma: bool = False,
) -> Latents:
    """Draws each z_s from its distribution given z_t and z_0: ancestral sampling; first order.

    Needs many steps, and every step draws noise. The variance is the posterior's, the smaller of
    the two choices of Ho et al. 2020 (arXiv:2006.11239), eq. 6 and 7; so it is ddim with eta = 1,
    and what k-diffusion calls Euler ancestral.
    """
    z, times, alpha, sigma = path(schedule, steps, noise, start_at_sigma)
    for i, t in enumerate(times):
        z_0 = denoise(z, t)
        std = posterior_std(alpha[i], sigma[i], alpha[i + 1], sigma[i + 1])
        kept = alpha[i] * sigma[i + 1] ** 2 / (alpha[i + 1] * sigma[i] ** 2)
        z = kept * z + (alpha[i + 1] - kept * alpha[i]) * z_0
        if i < steps - 1:  # the last step goes to the clean end, where std is 0
            z = z + std * fresh(draw_noise)
    return z


@torch.no_grad()
def euler(
    denoise: Denoise,
    noise: Latents,
    schedule: Schedule,
    steps: int = 50,
    draw_noise: DrawNoise | None = None,
    *,
    start_at_sigma: bool = False,
) -> Latents:
    """Euler's method on the straight line from noise to z_0; first order.

    The line is straight in z / alpha over sigma / alpha (Karras et al. 2022, arXiv:2206.00364,
    eq. 4) as on the flow's path, and in exact arithmetic a step on it is one of ddim.
    """
    z, times, alpha, sigma = path(schedule, steps, noise, start_at_sigma)
    for i, t in enumerate(times):
        ratio = sigma[i + 1] / sigma[i]
        z = ratio * z + (alpha[i + 1] - ratio * alpha[i]) * denoise(z, t)
    return z


@torch.no_grad()
def dpmpp_2m(
    denoise: Denoise,
    noise: Latents,
    schedule: Schedule,
    steps: int = 25,
    draw_noise: DrawNoise | None = None,
    *,
    start_at_sigma: bool = False,
) -> Latents:
    """DPM-Solver++ (2M): extrapolates z_0 from two calls; second order, good from 15 steps on.

    Lu et al. 2022 (arXiv:2211.01095), algorithm 2. Where lambda = log(alpha / sigma) is infinite,
    that is at the end, and at a start with zero terminal SNR, a step is of first order.
    """
    z, times, alpha, sigma = path(schedule, steps, noise, start_at_sigma)
    step = (alpha / sigma).log().diff(dim=0)  # of lambda
    previous = None
    for i, t in enumerate(times):
        z_0 = denoise(z, t)
        ahead = z_0
        if 0 < i < steps - 1:
            ahead = z_0 + step[i] / (2 * step[i - 1]) * (z_0 - previous)
        ratio = sigma[i + 1] / sigma[i]
        z, previous = ratio * z + (alpha[i + 1] - ratio * alpha[i]) * ahead, z_0
    return z


def posterior_std(alpha_t: Number, sigma_t: Number, alpha_s: Number, sigma_s: Number) -> Number:
    """Standard deviation of z_s given z_t and z_0, for s less noisy than t; 0 at the clean end."""
    return sigma_s * (1 - (alpha_t * sigma_s / (alpha_s * sigma_t)) ** 2).sqrt()


def fresh(draw_noise: DrawNoise | None) -> Latents:
    if draw_noise is None:
        raise ValueError("this sampler draws noise at every step, so it needs draw_noise.")
    return draw_noise()


SAMPLERS = {"ddim": ddim, "ddpm": ddpm, "dpmpp_2m": dpmpp_2m, "euler": euler}


def find_sampler(name: str) -> Callable[..., Latents]:
    if name not in SAMPLERS:
        near = difflib.get_close_matches(name.lower().replace("+", "p"), SAMPLERS, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise ValueError(f"no sampler is called {name!r}; there are {', '.join(SAMPLERS)}.{hint}")
    return SAMPLERS[name]
