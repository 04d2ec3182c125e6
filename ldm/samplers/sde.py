"""Solvers of the reverse SDE, which add noise on the way; one call per step.

Fresh noise corrects earlier errors, at the price of more steps. With the noise of one Brownian path
(`ldm.samplers.noise`), more steps change the picture less and less.
"""

import torch

from foundation.shapes import Denoise, Latents
from ldm.samplers.levels import DrawNoise, Path, Steps, needed
from ldm.schedule import Schedule


@torch.no_grad()
def dpmpp_2m_sde(
    denoise: Denoise,
    noise: Latents,
    schedule: Schedule,
    steps: Steps = 25,
    draw_noise: DrawNoise | None = None,
    *,
    eta: float = 1.0,
    start_at_sigma: bool = False,
) -> Latents:
    """SDE-DPM-Solver++ (2M): `dpmpp_2m` with noise; second order in the ODE's part.

    Lu et al. 2022 (arXiv:2211.01095), appendix A.3, with k-diffusion's eta: 0 is the ODE.
    """
    path = Path(schedule, steps, noise, start_at_sigma)
    z, previous = path.start, None
    for i in range(len(path)):
        z_0 = denoise(z, path.time(i))
        ahead = path.ahead(z_0, previous, i)
        z, previous = drift(path, z, ahead, i, eta), z_0
        z = diffuse(path, z, i, eta, draw_noise)
    return z


@torch.no_grad()
def dpmpp_3m_sde(
    denoise: Denoise,
    noise: Latents,
    schedule: Schedule,
    steps: Steps = 25,
    draw_noise: DrawNoise | None = None,
    *,
    eta: float = 1.0,
    start_at_sigma: bool = False,
) -> Latents:
    """The same with three calls: z_0 as a parabola; third order in the ODE's part.

    k-diffusion's `sample_dpmpp_3m_sde`. Calls infinitely far away, as from noise alone, drop out.
    """
    path = Path(schedule, steps, noise, start_at_sigma)
    h, z, known = path.h, path.start, []  # known: earlier z_0, the newest first
    for i in range(len(path)):
        z_0 = denoise(z, path.time(i))
        z = drift(path, z, z_0, i, eta)
        if known and not path.last(i):
            x = h[i] * (1 + eta)
            phi_2 = torch.expm1(-x) / x + 1
            first = (z_0 - known[0]) * (h[i] / h[i - 1])  # derivatives, times powers of h
            if len(known) > 1:
                near, far = h[i - 1] / h[i], h[i - 2] / h[i]
                before = (known[0] - known[1]) / far
                second = (first - before) / (near + far)
                phi_3 = phi_2 / x - 0.5
                z = z + path.alpha[i + 1] * (phi_2 * (first + second * near) - phi_3 * second)
            else:
                z = z + path.alpha[i + 1] * phi_2 * first
        z = diffuse(path, z, i, eta, draw_noise)
        known = [z_0, *known[:1]] if h[i].isfinite() else []
    return z


def drift(path: Path, z: Latents, z_0: Latents, i: int, eta: float) -> Latents:
    """The part of a step without noise, exact if z_0 stays the same. eta = 0: `Path.toward`."""
    kept = path.sigma[i + 1] / path.sigma[i] * path.shrink[i] ** eta
    return kept * z + path.alpha[i + 1] * (1 - path.shrink[i] ** (1 + eta)) * z_0


def diffuse(path: Path, z: Latents, i: int, eta: float, draw_noise: DrawNoise | None) -> Latents:
    """Adds the noise of a step; none on the last, which ends in the clean image."""
    if eta == 0 or path.last(i):
        return z
    std = path.sigma[i + 1] * (1 - path.shrink[i] ** (2 * eta)).sqrt()
    return z + std * needed(draw_noise)(path.angle[i], path.angle[i + 1])
