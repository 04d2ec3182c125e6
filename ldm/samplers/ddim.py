"""Go to z_0 and back by a smaller noise: along the noise that leads there, by fresh noise, or by
some of each. One network call per step, first order."""

import torch

from foundation.shapes import Denoise, Latents
from ldm.samplers.levels import DrawNoise, Path, Steps, needed
from ldm.schedule import Schedule


@torch.no_grad()
def ddim(
    denoise: Denoise,
    noise: Latents,
    schedule: Schedule,
    steps: Steps = 50,
    draw_noise: DrawNoise | None = None,
    *,
    eta: float = 0.0,
    start_at_sigma: bool = False,
) -> Latents:
    """Deterministic, unless eta says otherwise.

    eta: share of fresh noise, from 0 to 1, the ancestral sampler of DDPM.
    Song et al. 2021 (arXiv:2010.02502), eq. 12 and 16.
    """
    path = Path(schedule, steps, noise, start_at_sigma)
    alpha, sigma, z = path.alpha, path.sigma, path.start
    for i in range(len(path)):
        z_0 = denoise(z, path.time(i))
        eps = (z - alpha[i] * z_0) / sigma[i]
        std = eta * path.posterior_std(i)
        z = alpha[i + 1] * z_0 + (sigma[i + 1] ** 2 - std**2).sqrt() * eps
        if eta > 0 and not path.last(i):  # the last step goes to the clean end, where std is 0
            z = z + std * needed(draw_noise)(path.angle[i], path.angle[i + 1])
    return z


@torch.no_grad()
def ddpm(
    denoise: Denoise,
    noise: Latents,
    schedule: Schedule,
    steps: Steps = 250,
    draw_noise: DrawNoise | None = None,
    *,
    start_at_sigma: bool = False,
) -> Latents:
    """Draws each z_s from its distribution given z_t and z_0: ancestral sampling. Needs many steps.

    The variance is the posterior's, the smaller of the two choices of Ho et al. 2020
    (arXiv:2006.11239), eq. 6 and 7; so it is ddim with eta = 1.
    """
    path = Path(schedule, steps, noise, start_at_sigma)
    z = path.start
    for i in range(len(path)):
        z_0 = denoise(z, path.time(i))
        kept = path.shrink[i] * path.sigma[i + 1] / path.sigma[i]
        z = kept * z + path.alpha[i + 1] * (1 - path.shrink[i] ** 2) * z_0
        if not path.last(i):
            fresh = needed(draw_noise)(path.angle[i], path.angle[i + 1])
            z = z + path.posterior_std(i) * fresh
    return z


def euler_ancestral(
    denoise: Denoise,
    noise: Latents,
    schedule: Schedule,
    steps: Steps = 50,
    draw_noise: DrawNoise | None = None,
    *,
    eta: float = 1.0,
    start_at_sigma: bool = False,
) -> Latents:
    """Euler's step to less noise than wanted, then fresh noise up to it, as k-diffusion has it.

    In exact arithmetic that is ddim with the same eta: both leave sqrt(sigma_s^2 - std^2) of the
    noise that was there and add std of fresh noise.
    """
    return ddim(denoise, noise, schedule, steps, draw_noise, eta=eta, start_at_sigma=start_at_sigma)


@torch.no_grad()
def lcm(
    denoise: Denoise,
    noise: Latents,
    schedule: Schedule,
    steps: Steps = 4,
    draw_noise: DrawNoise | None = None,
    *,
    boundary: bool = False,
    start_at_sigma: bool = False,
) -> Latents:
    """All the way to z_0 and back with noise that is fresh altogether.

    For models distilled into consistency models, whose z_0 is already a sample: Luo et al. 2023
    (arXiv:2310.04378), algorithm 3; Song et al. 2023 (arXiv:2303.01469), algorithm 1. With others
    it blurs.

    boundary: mix in a little of z_t, by which such a model is bound to be exact at t = 0, as it was
        in the distillation (2310.04378, eq. 9 with 10 t). Far from t = 0 it changes nothing, so it
        is left out unless asked for.
    """
    path = Path(schedule, steps, noise, start_at_sigma)
    z = path.start
    for i in range(len(path)):
        z_0 = denoise(z, path.time(i))
        if boundary:
            x = 10 * path.times[i] / 0.5  # 0.5: the deviation that the data are taken to have
            z_0 = x / (1 + x**2).sqrt() * z_0 + z / (1 + x**2)
        z = path.alpha[i + 1] * z_0
        if not path.last(i):
            fresh = needed(draw_noise)(path.angle[i], path.angle[i + 1])
            z = z + path.sigma[i + 1] * fresh
    return z
