"""Samplers: noise -> latents, knowing nothing of a model but `denoise(z_t, t) -> z_0`.

Each solves the probability-flow ODE, or an SDE of the same marginals, of z_t = alpha_t z_0 +
sigma_t noise, along `NoiseLevels`. They must not import networks, guidance, tasks or the pipeline.
All are called alike:

    sampler(denoise, z, levels)               deterministic
    sampler(denoise, z, levels, draw_noise)   with noise in every step: names in STOCHASTIC

    denoise      called with latents and one timestep per image, all equal
    z            latents at the first level: unit noise, or sigma_T times it, as k-diffusion's
                 samplers and diffusers' Euler begin
    levels       NoiseLevels(schedule, steps)
    draw_noise   draw_noise(a, b) -> unit noise of the step between two angles, see `levels`

The formulas divide by no alpha, so that they also hold at zero terminal SNR, and no image depends
on the others in its batch.
"""

from collections.abc import Callable

from foundation.errors import unknown_name
from foundation.shapes import Latents
from ldm.samplers.ddim import ddim, ddpm, euler_ancestral, lcm
from ldm.samplers.dpm_solver import dpm_2, dpmpp_2m, dpmpp_2m_sde, dpmpp_2s, dpmpp_3m_sde
from ldm.samplers.euler_heun import euler, heun
from ldm.samplers.levels import DrawNoise, NoiseLevels
from ldm.samplers.plms import plms
from ldm.samplers.unipc import unipc

__all__ = ["CALLS_PER_STEP", "SAMPLERS", "STOCHASTIC", "DrawNoise", "NoiseLevels", "find_sampler"]

Sampler = Callable[..., Latents]
SAMPLERS: dict[str, Sampler] = {
    "ddim": ddim,
    "ddpm": ddpm,
    "dpm_2": dpm_2,
    "dpmpp_2m": dpmpp_2m,
    "dpmpp_2m_sde": dpmpp_2m_sde,
    "dpmpp_2s": dpmpp_2s,
    "dpmpp_3m_sde": dpmpp_3m_sde,
    "euler": euler,
    "euler_a": euler_ancestral,
    "heun": heun,
    "lcm": lcm,
    "plms": plms,
    "unipc": unipc,
}
STOCHASTIC = {"ddpm", "dpmpp_2m_sde", "dpmpp_3m_sde", "euler_a", "lcm"}  # add noise in every step
CALLS_PER_STEP = {"dpm_2": 2, "dpmpp_2s": 2, "heun": 2}  # network calls; all others 1


def find_sampler(name: str) -> Sampler:
    """Return the sampler of a name.

    Raises:
        UserError: no sampler has this name.
    """
    if name not in SAMPLERS:
        raise unknown_name(name, SAMPLERS, "sampler")
    return SAMPLERS[name]
