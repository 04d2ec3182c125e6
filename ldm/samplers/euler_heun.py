"""Euler's and Heun's method for the probability-flow ODE."""

import torch

from foundation.shapes import Denoise, Latents
from ldm.samplers.levels import NoiseLevels


@torch.no_grad()
def euler(denoise: Denoise, z: Latents, levels: NoiseLevels) -> Latents:
    """Euler's method on the straight line from noise to z_0; first order, one call per step.

    The line is straight in z / alpha over sigma / alpha (Karras et al. 2022, arXiv:2206.00364,
    eq. 4) as on the path of rectified flow; in exact arithmetic a step on it is one of ddim.
    """
    for i in range(len(levels)):
        z = levels.step_towards(z, denoise(z, levels.time(i, z)), i)
    return z


@torch.no_grad()
def heun(denoise: Denoise, z: Latents, levels: NoiseLevels) -> Latents:
    """Heun's method: the mean of the slopes at both ends; second order, two calls per step.

    Karras et al. 2022 (arXiv:2206.00364), algorithm 1, in z / alpha over sigma / alpha; for
    rectified flow in z over sigma. Two steps are Euler's: one from noise alone, where the slope is
    not defined, and the last one, which ends where there is none.
    """
    for i in range(len(levels)):
        z_0 = denoise(z, levels.time(i, z))
        z_next = levels.step_towards(z, z_0, i)
        if levels.scale[i] > 0 and not levels.is_last(i):
            z_0_next = denoise(z_next, levels.time(i + 1, z))
            slope_next = levels.slope(z_next, z_0_next, i + 1)
            z_next = levels.euler_step(z, (levels.slope(z, z_0, i) + slope_next) / 2, i)
        z = z_next
    return z
