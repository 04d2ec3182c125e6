"""Calling any sampler by its name, and small networks and noise for tests of sampling."""

import inspect

import torch
from torch import Tensor, nn

from foundation.shapes import Denoise, Latents
from ldm.denoiser import Conditioning
from ldm.samplers import SAMPLERS, DrawNoise, NoiseLevels, Sampler
from ldm.schedule import Schedule
from ldm.timesteps import Times
from ldm.unet import UNet, UNetConfig


def sample(
    sampler: str | Sampler,
    denoise: Denoise,
    noise: Latents,
    schedule: Schedule,
    steps: int | Times,
    draw_noise: DrawNoise | None = None,
    *,
    start_at_sigma: bool = False,
    **options: float,
) -> Latents:
    """Run a sampler; only those that add noise get `draw_noise`.

    start_at_sigma: begin at sigma_T times the noise, as k-diffusion's samplers do.
    """
    function = SAMPLERS[sampler] if isinstance(sampler, str) else sampler
    levels = NoiseLevels(schedule, steps)
    z = levels.sigma[0] * noise if start_at_sigma else noise
    if "draw_noise" in inspect.signature(function).parameters:
        options["draw_noise"] = draw_noise
    return function(denoise, z, levels, **options)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def text_conds(*weighted: tuple[Tensor, float]) -> list[tuple[Conditioning, float]]:
    """Wrap contexts and weights as `GuidedDenoiser` takes them."""
    return [(Conditioning(context), weight) for context, weight in weighted]


def random_unet(config: UNetConfig) -> UNet:
    """Make a U-Net whose zero-initialized layers are random, too: zeros would hide mistakes."""
    unet = UNet(config).eval()
    for weight in unet.parameters():
        if not weight.any():
            nn.init.normal_(weight, std=0.05)
    return unet


def make_unet(settings: dict) -> UNet:
    """Make a random U-Net without gradients; every call gives the same weights."""
    torch.manual_seed(0)
    return random_unet(UNetConfig(**settings)).requires_grad_(False)
