"""Pseudo linear multistep sampling, the sampler of the first Stable Diffusion."""

from collections import deque

import torch

from foundation.shapes import Denoise, Latents
from ldm.samplers.levels import NoiseLevels

# Weights of the newest slope and those before it, by how many there are (Adams, Bashforth 1883).
ADAMS_BASHFORTH = {
    1: (1.0,),
    2: (3 / 2, -1 / 2),
    3: (23 / 12, -16 / 12, 5 / 12),
    4: (55 / 24, -59 / 24, 37 / 24, -9 / 24),
}


@torch.no_grad()
def plms(denoise: Denoise, z: Latents, levels: NoiseLevels) -> Latents:
    """Pseudo linear multistep: extrapolates the slope from up to four calls; second order.

    Liu et al. 2022 (arXiv:2202.09778), as in latent diffusion (in diffusers: PNDM without
    Runge-Kutta steps): the first step takes the mean of two calls. Its weights are those of equal
    strides, so it needs times in equal strides. A step from noise alone is Euler's.
    """
    slopes: deque[Latents] = deque(maxlen=4)
    for i in range(len(levels)):
        z_0 = denoise(z, levels.time(i, z))
        if not levels.scale[i] > 0 or len(levels) == 1:
            z = levels.step_towards(z, z_0, i)
            continue
        slopes.appendleft(levels.slope(z, z_0, i))
        slope = weighted_sum(ADAMS_BASHFORTH[len(slopes)], slopes)
        if len(slopes) == 1 and not levels.is_last(i):
            z_next = levels.euler_step(z, slope, i)
            z_0_next = denoise(z_next, levels.time(i + 1, z))
            slope = (slope + levels.slope(z_next, z_0_next, i + 1)) / 2
        z = levels.euler_step(z, slope, i)
    return z


def weighted_sum(weights: tuple[float, ...], slopes: deque[Latents]) -> Latents:
    """Combine the slopes, the newest first."""
    total = weights[0] * slopes[0]
    for weight, slope in zip(weights[1:], list(slopes)[1:], strict=True):
        total = total + weight * slope
    return total
