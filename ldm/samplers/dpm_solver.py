"""Solvers of the probability-flow ODE that extrapolate from earlier calls; one call per step."""

from collections import deque

import torch

from foundation.shapes import Denoise, Latents
from ldm.samplers.levels import DrawNoise, Path, Steps
from ldm.schedule import Schedule

# Weights of the newest slope and those before it, by how many there are (Adams, Bashforth 1883).
ADAMS_BASHFORTH = {
    1: (1.0,),
    2: (3 / 2, -1 / 2),
    3: (23 / 12, -16 / 12, 5 / 12),
    4: (55 / 24, -59 / 24, 37 / 24, -9 / 24),
}


@torch.no_grad()
def dpmpp_2m(
    denoise: Denoise,
    noise: Latents,
    schedule: Schedule,
    steps: Steps = 25,
    draw_noise: DrawNoise | None = None,
    *,
    start_at_sigma: bool = False,
) -> Latents:
    """DPM-Solver++ (2M): extrapolates z_0 from two calls; second order, good from 15 steps on.

    Lu et al. 2022 (arXiv:2211.01095), algorithm 2. Where log(alpha / sigma) is infinite, that is at
    the end, and at a start with zero terminal SNR, a step is of first order.
    """
    path = Path(schedule, steps, noise, start_at_sigma)
    z, previous = path.start, None
    for i in range(len(path)):
        z_0 = denoise(z, path.time(i))
        ahead = path.ahead(z_0, previous, i)
        z, previous = path.toward(z, ahead, i), z_0
    return z


@torch.no_grad()
def plms(
    denoise: Denoise,
    noise: Latents,
    schedule: Schedule,
    steps: Steps = 50,
    draw_noise: DrawNoise | None = None,
    *,
    start_at_sigma: bool = False,
) -> Latents:
    """Pseudo linear multistep: extrapolates the slope from up to four calls; second order.

    Liu et al. 2022 (arXiv:2202.09778), as latent diffusion has it (PLMS, in diffusers PNDM without
    Runge-Kutta steps): the first step takes the mean of two calls. Its weights are those of equal
    strides, so it wants times in equal strides. A step from noise alone is Euler's.
    """
    path = Path(schedule, steps, noise, start_at_sigma)
    z, slopes = path.start, deque(maxlen=4)
    for i in range(len(path)):
        z_0 = denoise(z, path.time(i))
        if not path.scale[i] > 0 or len(path) == 1:
            z = path.toward(z, z_0, i)
            continue
        slopes.appendleft(path.slope(z, z_0, i))
        weights = ADAMS_BASHFORTH[len(slopes)]
        slope = sum(w * known for w, known in zip(weights, slopes, strict=True))
        if len(slopes) == 1 and not path.last(i):
            ahead = path.along(z, slope, i)
            slope = (slope + path.slope(ahead, denoise(ahead, path.time(i + 1)), i + 1)) / 2
        z = path.along(z, slope, i)
    return z
