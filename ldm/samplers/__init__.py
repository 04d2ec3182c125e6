"""Noise -> latents, knowing nothing of a model but `denoise(z_t, t) -> z_0`.

Each sampler solves the probability-flow ODE, or an SDE of the same marginals, of
z_t = alpha_t z_0 + sigma_t noise, along a list of times, noise first (`path`, `ldm.timesteps`). All
take the same arguments:

    denoise         called with latents and one time per image, all alike
    noise           where to start
    schedule        alpha and sigma at a time
    steps           how many, at the schedule's own times; or the times themselves
    draw_noise      for those that add noise on the way: `draw_noise(a, b)`, see `path`
    start_at_sigma  begin at sigma_T noise, as k-diffusion's samplers and diffusers' Euler do, not
                    at noise. Without zero terminal SNR sigma_T is a little below 1, the deviation
                    of latents at any t.

The formulas divide by no alpha, so that they also hold at zero terminal SNR, and image k depends on
no other image of the batch.
"""

from collections.abc import Callable

from foundation.errors import unknown_name
from foundation.shapes import Latents
from ldm.samplers.ddim import ddim, ddpm, euler_ancestral, lcm
from ldm.samplers.dpm_solver import dpmpp_2m, plms
from ldm.samplers.euler_heun import dpmpp_2s, euler, heun
from ldm.samplers.sde import dpmpp_2m_sde, dpmpp_3m_sde
from ldm.samplers.unipc import unipc

SAMPLERS = {
    "ddim": ddim,
    "ddpm": ddpm,
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
STOCHASTIC = {"ddpm", "dpmpp_2m_sde", "dpmpp_3m_sde", "euler_a", "lcm"}  # draw noise on the way
CALLS_PER_STEP = {"dpmpp_2s": 2, "heun": 2}  # of the network; all others 1


def find_sampler(name: str) -> Callable[..., Latents]:
    if name not in SAMPLERS:
        raise unknown_name(name, SAMPLERS, "sampler")
    return SAMPLERS[name]
