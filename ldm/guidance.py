"""Classifier-free guidance: prompts bound to a denoiser, so that a sampler sees neither.

    guided = uncond + scale * sum of weight_k (cond_k - uncond)

scale 0 ignores the prompt, 1 is plain conditional, above 1 follows the prompt harder. Ho & Salimans
2022 (arXiv:2207.12598) write the same rule with w = scale - 1. uncond is the estimate under the
empty prompt, under a negative prompt, or with autoguidance that of a weaker model under the same
prompt.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import cast

import torch
from torch import Tensor

from foundation.errors import UserError
from foundation.shapes import Latents, Timesteps
from ldm.config import TRAIN_TIMESTEPS
from ldm.denoiser import BoundDenoiser, Conditioning, Denoiser

LARGEST_SCALE = 1000  # beyond it the sum overflows, which looks like broken weights


@dataclass(frozen=True, kw_only=True)
class Guidance:
    """Settings of classifier-free guidance; the defaults of all but `scale` switch nothing on."""

    # 0 ignores the prompt, 1 is plain conditional, above 1 is guided.
    scale: float = 4.0
    # 0 to 1: how far the standard deviation of the network's output is brought back to what it is
    # without guidance, against overexposure. Lin et al. 2023 (arXiv:2305.08891), section 3.4.
    rescale: float = 0.0
    # Guidance applies between these noise levels (0 clean, 1 noise); outside, sampling is plain
    # conditional, which saves network calls and keeps variety. Kynkäänniemi et al. 2024
    # (arXiv:2404.07724).
    interval: tuple[float, float] = (0.0, 1.0)
    # Adaptive projected guidance, Sadat et al. 2024 (arXiv:2410.02416), algorithm 1. How much is
    # kept of the component parallel to the prediction, which saturates colors (1: all of it) ...
    parallel: float = 1.0
    max_norm: float | None = None  # ... the largest norm of the guidance direction, per image ...
    momentum: float = 0.0  # ... and the factor of its running average that is added (often < 0)

    def __post_init__(self):
        if not abs(self.scale) <= LARGEST_SCALE:
            raise UserError(
                f"guidance_scale is {self.scale:g}; it must be from -{LARGEST_SCALE} to "
                f"{LARGEST_SCALE}. Values above 30 already give no picture any more."
            )
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

    def applies_at(self, t: float) -> bool:
        """Return whether timestep t (0 to 1000) lies in the interval."""
        low, high = self.interval
        return low * TRAIN_TIMESTEPS <= t <= high * TRAIN_TIMESTEPS


class GuidedDenoiser:
    """What a sampler calls: (z_t, t) -> z_0, with prompts and guidance inside.

    For one run of a sampler, since momentum remembers earlier steps.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        conds: Sequence[tuple[Conditioning, float]],
        uncond: Conditioning,
        guidance: Guidance,
        weak: Denoiser | None = None,
        *,
        constrain: Callable[[Latents], Latents] | None = None,
        callback: Callable[[Latents], None] | None = None,
    ):
        """
        Args:
            conds: prompts and their weights. More than one are composed ("a AND b"): Liu et al.
                2022 (arXiv:2206.01714), eq. 11. Weights add up to 1 unless that is meant.
            uncond: the empty or the negative prompt; not used with `weak`.
            weak: a weaker model, such as an earlier state of the same run, whose estimate takes the
                place of `uncond`: autoguidance, Karras et al. 2024 (arXiv:2406.02507), eq. 3.
            constrain: changes each estimate of z_0, such as to keep a part of a given picture.
            callback: called with each estimate of z_0 after that.
        """
        self.denoiser, self.guidance, self.weak = denoiser, guidance, weak
        self.conds = [conditioning for conditioning, _ in conds]
        self.weights = [weight for _, weight in conds]
        self.uncond, self.constrain, self.callback = uncond, constrain, callback
        self.momentum_buffer: Latents | None = None

    # Bound when first needed: a guidance interval may need only one of them.

    @cached_property
    def bound_conds(self) -> BoundDenoiser:
        return self.denoiser.bind(self.conds)

    @cached_property
    def bound_uncond(self) -> BoundDenoiser:
        return self.denoiser.bind([self.uncond])

    @cached_property
    def bound_all(self) -> BoundDenoiser:
        return self.denoiser.bind([self.uncond, *self.conds])

    @cached_property
    def bound_weak(self) -> BoundDenoiser | None:
        return None if self.weak is None else self.weak.bind(self.conds)

    def __call__(self, z_t: Latents, t: Timesteps) -> Latents:
        """
        Args:
            t: one timestep per image, all equal; on the CPU, so that no GPU is waited for.
        """
        guided = self.guidance.scale != 1 and self.guidance.applies_at(float(t[0]))
        count = len(self.conds)
        if self.guidance.scale == 0 and self.weak is None:
            z_0 = self.bound_uncond(z_t, t)
        elif self.weights == [1.0] and not guided:
            z_0 = self.bound_conds(z_t, t)
        elif self.bound_weak is None:  # one network call for all
            z_uncond, *z_conds = self.bound_all(z_t, t).chunk(count + 1)
            z_0 = self.compose(z_t, t, z_uncond, z_conds, guided)
        else:
            z_conds = self.bound_conds(z_t, t).chunk(count)
            z_weak = self.weighted_sum(self.bound_weak(z_t, t).chunk(count)) / sum(self.weights)
            z_0 = self.compose(z_t, t, z_weak, z_conds, guided)
        if self.constrain is not None:
            z_0 = self.constrain(z_0)
        if self.callback is not None:
            self.callback(z_0)
        return z_0

    def weighted_sum(self, estimates: Sequence[Latents]) -> Latents:
        """Add up one tensor per prompt, times the prompts' weights."""
        total = self.weights[0] * estimates[0]
        for weight, estimate in zip(self.weights[1:], estimates[1:], strict=True):
            total = total + weight * estimate
        return total

    def compose(
        self,
        z_t: Latents,
        t: Timesteps,
        z_uncond: Latents,
        z_conds: Sequence[Latents],
        guided: bool,
    ) -> Latents:
        """Combine the estimates under all prompts, and guide the result away from `z_uncond`."""
        direction = self.weighted_sum([z_cond - z_uncond for z_cond in z_conds])
        z_0 = z_uncond + direction
        return self.guide(z_t, t, z_0, direction) if guided else z_0

    def guide(self, z_t: Latents, t: Timesteps, z_cond: Latents, direction: Latents) -> Latents:
        """Move the conditional estimate further along the direction away from `uncond`."""
        guidance = self.guidance
        if guidance.momentum:
            if self.momentum_buffer is not None:
                direction = direction + guidance.momentum * self.momentum_buffer
            self.momentum_buffer = direction
        if guidance.max_norm is not None:
            direction = limit_norm(direction, guidance.max_norm)
        if guidance.parallel != 1:
            direction = direction - (1 - guidance.parallel) * project(direction, z_cond)
        z_0 = z_cond + (guidance.scale - 1) * direction
        if guidance.rescale:
            z_0 = rescale(self.denoiser, z_t, t, z_0, z_cond, guidance.rescale)
        return z_0


def limit_norm(direction: Latents, max_norm: float) -> Latents:
    """Shorten the direction of each image whose norm is above `max_norm`."""
    norms = cast(Tensor, torch.linalg.vector_norm(direction.flatten(1), dim=1))  # pyright: ignore[reportUnknownMemberType]
    norm = norms[:, None, None, None]
    return direction * (max_norm / norm.clamp(min=max_norm))


def project(direction: Latents, onto: Latents) -> Latents:
    """Compute the component of `direction` parallel to `onto`, image by image."""
    dot = (direction * onto).sum(dim=(1, 2, 3), keepdim=True)
    square = onto.square().sum(dim=(1, 2, 3), keepdim=True)
    return dot / square.clamp(min=torch.finfo(square.dtype).tiny) * onto


def rescale(
    denoiser: Denoiser, z_t: Latents, t: Timesteps, z_0: Latents, z_cond: Latents, share: float
) -> Latents:
    """Bring the deviation of the network's output towards that of the conditional output.

    share: 0 to 1; how far.
    """
    guided, conditional = (denoiser.to_output(x, z_t, t) for x in (z_0, z_cond))
    factor = conditional.std(dim=(1, 2, 3), keepdim=True) / guided.std(dim=(1, 2, 3), keepdim=True)
    return denoiser.to_sample(guided * (1 + share * (factor - 1)), z_t, t)
