"""Samplers that go to z_0 and back to less noise: along the noise that leads there, or fresh noise.

One network call per step, first order.
"""

import torch

from foundation.shapes import Denoise, Latents
from ldm.samplers.levels import DrawNoise, NoiseLevels, require_noise


@torch.no_grad()
def ddim(
    denoise: Denoise,
    z: Latents,
    levels: NoiseLevels,
    draw_noise: DrawNoise | None = None,
    *,
    eta: float = 0.0,
) -> Latents:
    """DDIM: deterministic, unless eta is above 0.

    eta: share of fresh noise, from 0 to 1, the ancestral sampler of DDPM.
    Song et al. 2021 (arXiv:2010.02502), eq. 12 and 16.
    """
    alpha, sigma = levels.alpha, levels.sigma
    for i in range(len(levels)):
        z_0 = denoise(z, levels.time(i, z))
        eps = (z - alpha[i] * z_0) / sigma[i]
        std = eta * levels.posterior_std(i)
        z = alpha[i + 1] * z_0 + (sigma[i + 1] ** 2 - std**2).sqrt() * eps
        if eta > 0 and not levels.is_last(i):  # the last step ends in the clean image: std is 0
            z = z + std * require_noise(draw_noise)(levels.angle[i], levels.angle[i + 1])
    return z


@torch.no_grad()
def ddpm(
    denoise: Denoise, z: Latents, levels: NoiseLevels, draw_noise: DrawNoise | None = None
) -> Latents:
    """Ancestral sampling: draws each z_s from its distribution given z_t and z_0. Many steps.

    The variance is the posterior's, the smaller of the two choices of Ho et al. 2020
    (arXiv:2006.11239), eq. 6 and 7; so it is ddim with eta = 1.
    """
    for i in range(len(levels)):
        z_0 = denoise(z, levels.time(i, z))
        z = posterior_mean(levels, z, z_0, i)
        if not levels.is_last(i):
            noise = require_noise(draw_noise)(levels.angle[i], levels.angle[i + 1])
            z = z + levels.posterior_std(i) * noise
    return z


def posterior_mean(levels: NoiseLevels, z: Latents, z_0: Latents, i: int) -> Latents:
    """Compute the mean of the latents at level i + 1, given those at level i and z_0."""
    ratio = levels.snr_ratio[i]
    of_z = ratio * levels.sigma[i + 1] / levels.sigma[i]
    return of_z * z + levels.alpha[i + 1] * (1 - ratio**2) * z_0


def euler_ancestral(
    denoise: Denoise,
    z: Latents,
    levels: NoiseLevels,
    draw_noise: DrawNoise | None = None,
    *,
    eta: float = 1.0,
) -> Latents:
    """Euler's method to less noise than wanted, then fresh noise up to it; k-diffusion's euler_a.

    In exact arithmetic that is ddim with the same eta: both leave sqrt(sigma_s^2 - std^2) of the
    noise that was there and add std of fresh noise.
    """
    return ddim(denoise, z, levels, draw_noise, eta=eta)


@torch.no_grad()
def lcm(
    denoise: Denoise,
    z: Latents,
    levels: NoiseLevels,
    draw_noise: DrawNoise | None = None,
    *,
    boundary: bool = False,
) -> Latents:
    """Latent consistency sampling: all the way to z_0, and back with noise that is all fresh.

    For models distilled into consistency models, whose z_0 is already a sample: Luo et al. 2023
    (arXiv:2310.04378), algorithm 3; Song et al. 2023 (arXiv:2303.01469), algorithm 1. With others
    it blurs.

    boundary: mix in a little of z_t, by which such a model is bound to be exact at t = 0, as it was
        in the distillation (2310.04378, eq. 9 with 10 t). Far from t = 0 it changes nothing, so it
        is left out unless asked for.
    """
    for i in range(len(levels)):
        z_0 = denoise(z, levels.time(i, z))
        if boundary:
            x = 10 * levels.times[i] / 0.5  # 0.5: the assumed standard deviation of the data
            z_0 = x / (1 + x**2).sqrt() * z_0 + z / (1 + x**2)
        z = levels.alpha[i + 1] * z_0
        if not levels.is_last(i):
            noise = require_noise(draw_noise)(levels.angle[i], levels.angle[i + 1])
            z = z + levels.sigma[i + 1] * noise
    return z
