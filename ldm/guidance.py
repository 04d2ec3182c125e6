"""Prompts and guidance, bound to a denoiser: a sampler hears of neither."""

import torch

from ldm.denoiser import Denoiser
from ldm.shapes import Context, Denoise, Latents, Timesteps


def guide(denoiser: Denoiser, cond: Context, uncond: Context, guidance_scale: float) -> Denoise:
    """Binds the prompts to a denoiser:  uncond + guidance_scale (cond - uncond).

    guidance_scale 0 ignores the prompt, 1 is plain conditional (one network call each), above 1
    follows it harder. Ho & Salimans 2022 (arXiv:2207.12598) write the same rule with
    w = guidance_scale - 1.
    """

    def denoise(z_t: Latents, t: Timesteps) -> Latents:
        both = denoiser(torch.cat([z_t, z_t]), torch.cat([t, t]), torch.cat([uncond, cond]))
        z_uncond, z_cond = both.chunk(2)
        return z_uncond + guidance_scale * (z_cond - z_uncond)

    if guidance_scale == 0:
        return lambda z_t, t: denoiser(z_t, t, uncond)
    if guidance_scale == 1:
        return lambda z_t, t: denoiser(z_t, t, cond)
    return denoise
