"""Solvers of the probability-flow ODE that remember nothing from one step to the next."""

import torch

from foundation.shapes import Denoise, Latents
from ldm.samplers.levels import DrawNoise, Path, Steps
from ldm.schedule import Schedule


@torch.no_grad()
def euler(
    denoise: Denoise,
    noise: Latents,
    schedule: Schedule,
    steps: Steps = 50,
    draw_noise: DrawNoise | None = None,
    *,
    start_at_sigma: bool = False,
) -> Latents:
    """Euler's method on the straight line from noise to z_0; first order, one call per step.

    The line is straight in z / alpha over sigma / alpha (Karras et al. 2022, arXiv:2206.00364,
    eq. 4) as on the flow's path, and in exact arithmetic a step on it is one of ddim.
    """
    path = Path(schedule, steps, noise, start_at_sigma)
    z = path.start
    for i in range(len(path)):
        z = path.toward(z, denoise(z, path.time(i)), i)
    return z


@torch.no_grad()
def heun(
    denoise: Denoise,
    noise: Latents,
    schedule: Schedule,
    steps: Steps = 25,
    draw_noise: DrawNoise | None = None,
    *,
    start_at_sigma: bool = False,
) -> Latents:
    """Heun's method: the mean of the slopes at both ends; second order, two calls per step.

    Karras et al. 2022 (arXiv:2206.00364), algorithm 1, in z / alpha over sigma / alpha; on a flow
    in z over sigma. A step from noise alone, where the slope is not known, and the last one, which
    ends where there is none, are Euler's.
    """
    path = Path(schedule, steps, noise, start_at_sigma)
    z = path.start
    for i in range(len(path)):
        z_0 = denoise(z, path.time(i))
        ahead = path.toward(z, z_0, i)
        if path.scale[i] > 0 and not path.last(i):
            slope_ahead = path.slope(ahead, denoise(ahead, path.time(i + 1)), i + 1)
            ahead = path.along(z, (path.slope(z, z_0, i) + slope_ahead) / 2, i)
        z = ahead
    return z


@torch.no_grad()
def dpmpp_2s(
    denoise: Denoise,
    noise: Latents,
    schedule: Schedule,
    steps: Steps = 25,
    draw_noise: DrawNoise | None = None,
    *,
    start_at_sigma: bool = False,
) -> Latents:
    """DPM-Solver++ (2S): z_0 from halfway, in log(alpha / sigma); second order, two calls per step.

    Lu et al. 2022 (arXiv:2211.01095), algorithm 1 with r = 1/2. Where there is no halfway, from
    noise alone and to the clean end, a step is Euler's.
    """
    path = Path(schedule, steps, noise, start_at_sigma)
    ratio = path.sigma / path.alpha
    between = (ratio[:-1] * ratio[1:]).sqrt().nan_to_num(0)  # 0 times infinity
    middle = schedule.timesteps_of_ratio(between)
    alpha, sigma = schedule.exact(middle)
    z = path.start
    for i in range(len(path)):
        z_0 = denoise(z, path.time(i))
        if path.h[i].isfinite():
            kept = sigma[i] / path.sigma[i]
            half = kept * z + (alpha[i] - kept * path.alpha[i]) * z_0
            z_0 = denoise(half, middle[i].expand(len(z)))
        z = path.toward(z, z_0, i)
    return z
