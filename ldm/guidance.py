"""Prompts and guidance, bound to a denoiser: a sampler hears of neither.

    guided = uncond + scale * sum of weight_k (cond_k - uncond)

scale 0 ignores the prompt, 1 is plainly conditional, above 1 follows it harder. Ho & Salimans 2022
(arXiv:2207.12598) write the same rule with w = scale - 1. uncond is the empty prompt, a negative
prompt, or with autoguidance what a weaker model makes of the same prompt. The rest refines this.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial

import torch

from foundation.errors import UserError
from foundation.shapes import Context, Denoise, Latents, Timesteps
from ldm.denoiser import Denoiser
from ldm.schedule import TRAIN_TIMESTEPS


@dataclass(frozen=True, kw_only=True)
class Guidance:
    scale: float = 4.0
    # Share of the way to the standard deviation of the plain prediction, against overexposure:
    # Lin et al. 2023 (arXiv:2305.08891), section 3.4. On the network's own output, as there.
    rescale: float = 0.0
    # Guided from and to these shares of the noise's way (0 clean, 1 noise), and plainly conditional
    # outside: Kynkäänniemi et al. 2024 (arXiv:2404.07724). Saves calls, and variety.
    interval: tuple[float, float] = (0.0, 1.0)
    # Adaptive projected guidance, Sadat et al. 2024 (arXiv:2410.02416), algorithm 1: the share kept
    # of the part along the prediction, which saturates colors (1: all of it, that is off) ...
    parallel: float = 1.0
    max_norm: float | None = None  # ... the largest norm of the difference, per image ...
    momentum: float = 0.0  # ... and what of its running sum is added; negative pushes away

    def __post_init__(self):
        low, high = self.interval
        if not 0 <= low < high <= 1:
            raise UserError(
                f"the guidance interval is {low:g} to {high:g}; it must rise inside 0 (clean) to "
                "1 (noise), for example 0.1 to 0.8."
            )
        for name in ("rescale", "parallel"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name} is {getattr(self, name):g}; it must be from 0 to 1.")
        if self.max_norm is not None and not self.max_norm > 0:
            raise UserError(f"max_norm is {self.max_norm:g}; it must be above 0, or left out.")
        if not -1 < self.momentum < 1:
            raise UserError(f"momentum is {self.momentum:g}; it must lie between -1 and 1.")

    def at(self, t: float) -> bool:
        """Whether it applies at a time from 0 to 1000."""
        low, high = self.interval
        return low * TRAIN_TIMESTEPS <= t <= high * TRAIN_TIMESTEPS


def guide(
    denoiser: Denoiser,
    conds: Sequence[tuple[Context, float]],
    uncond: Context,
    guidance: Guidance,
    weak: Denoiser | None = None,
) -> Denoise:
    """Binds prompts and guidance to a denoiser. For one run of a sampler: momentum has a memory.

    Args:
        conds: prompts and their weights. More than one are drawn together ("a AND b"): Liu et al.
            2022 (arXiv:2206.01714), eq. 11. Weights add up to 1 unless that is meant.
        weak: a worse model of the same kind, such as an earlier state of the same run, that takes
            the place of `uncond`: autoguidance, Karras et al. 2024 (arXiv:2406.02507), eq. 3.
    """
    contexts = [context for context, _ in conds]
    weights = [weight for _, weight in conds]
    plain = weights == [1.0]
    everything = contexts if weak is not None else [uncond, *contexts]
    # Prepared when first asked for: a guidance interval may leave one of them out.
    under_all, under_conds, under_uncond = (
        cache(partial(denoiser.bind, some)) for some in (everything, contexts, [uncond])
    )
    under_conds_weakly = None if weak is None else weak.bind(contexts)
    running: Latents | float = 0.0

    def denoise(z_t: Latents, t: Timesteps) -> Latents:
        nonlocal running
        if guidance.scale == 0 and weak is None:
            return under_uncond()(z_t, t)
        guided = guidance.scale != 1 and guidance.at(float(t[0]))
        if plain and not guided:
            return under_conds()(z_t, t)
        parts = under_all()(z_t, t).chunk(len(everything))
        if under_conds_weakly is None:
            z_uncond, *parts = parts
        else:
            z_uncond = mixed(under_conds_weakly(z_t, t).chunk(len(contexts)), weights)
        differences = [part - z_uncond for part in parts]
        change = sum(w * difference for w, difference in zip(weights, differences, strict=True))
        z_cond = z_uncond + change
        if not guided:
            return z_cond
        if guidance.momentum:
            running = change = change + guidance.momentum * running
        change = bounded(change, guidance.max_norm)
        if guidance.parallel != 1:
            change = change - (1 - guidance.parallel) * along(change, z_cond)
        z_0 = z_cond + (guidance.scale - 1) * change
        if guidance.rescale:
            z_0 = rescaled(denoiser, z_t, t, z_0, z_cond, guidance.rescale)
        return z_0

    return denoise


def mixed(parts: Sequence[Latents], weights: Sequence[float]) -> Latents:
    return sum(w * part for w, part in zip(weights, parts, strict=True)) / sum(weights)


def bounded(change: Latents, max_norm: float | None) -> Latents:
    if max_norm is None:
        return change
    norm = change.flatten(1).norm(dim=1)[:, None, None, None]
    return change * (max_norm / norm.clamp(min=max_norm))


def along(change: Latents, direction: Latents) -> Latents:
    """The part of `change` that points along `direction`, image by image."""
    dot = (change * direction).sum(dim=(1, 2, 3), keepdim=True)
    square = direction.square().sum(dim=(1, 2, 3), keepdim=True)
    return dot / square.clamp(min=torch.finfo(square.dtype).tiny) * direction


def rescaled(
    denoiser: Denoiser, z_t: Latents, t: Timesteps, z_0: Latents, z_cond: Latents, share: float
) -> Latents:
    """z_0 with the network's output brought towards the deviation that it has without guidance."""
    output, plain = (denoiser.as_output(x, z_t, t) for x in (z_0, z_cond))
    factor = plain.std(dim=(1, 2, 3), keepdim=True) / output.std(dim=(1, 2, 3), keepdim=True)
    return denoiser.from_output(output * (1 + share * (factor - 1)), z_t, t)
