"""The way from noise to the clean image: where a sampler calls the network, and what lies there."""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float64, Real
from torch import Tensor

from foundation.errors import UserError
from foundation.shapes import Latents, Number, Timesteps
from ldm.schedule import RectifiedFlow, Schedule

Levels = Float64[Tensor, " levels"]
Times = Real[Tensor, " steps"]  # falling, within the schedule's
Steps = int | Times

# draw_noise(a, b): unit noise for the way from angle a down to angle b, each image's own. The angle
# is atan2(sigma, alpha) / (pi / 2): 1 is noise alone, 0 is clean, whatever the schedule.
DrawNoise = Callable[[float, float], Latents]


class Path:
    """Times of the calls, alpha and sigma there and, one more, at the clean end.

    A step goes from level i to level i + 1; the last one ends in the clean image. Coefficients are
    computed once, in float64 on the CPU, so that no step waits for a GPU.
    """

    def __init__(self, schedule: Schedule, steps: Steps, noise: Latents, start_at_sigma: bool):
        times = schedule.timesteps(steps) if isinstance(steps, int) else steps
        alpha, sigma = schedule.exact(times)
        self.start = sigma[0] * noise if start_at_sigma else noise
        self.times = times
        self.alpha = torch.cat([alpha, alpha.new_ones(1)])
        self.sigma = torch.cat([sigma, sigma.new_zeros(1)])
        self.angle = (torch.atan2(self.sigma, self.alpha) / (math.pi / 2)).tolist()
        # How much smaller sigma / alpha becomes in a step: from 1, no step, to 0.
        self.shrink = (self.sigma[1:] * self.alpha[:-1]) / (self.alpha[1:] * self.sigma[:-1])
        # log(alpha / sigma) grows by this: infinite at the clean end and from noise alone.
        self.h = -self.shrink.log()
        # Where z_0 stays the same, z / scale is a straight line over sigma / scale; this is the
        # scale for which the lines of real models are straightest.
        self.scale = torch.ones_like(self.alpha) if is_flow(schedule) else self.alpha

    def __len__(self) -> int:
        return len(self.times)

    def time(self, i: int) -> Timesteps:
        """Of level i, for every image; on the CPU, so that guidance can look at it."""
        return self.times[i].expand(len(self.start))

    def last(self, i: int) -> bool:
        return i == len(self) - 1

    def toward(self, z: Latents, z_0: Latents, i: int) -> Latents:
        """One step, exact if z_0 stays the same along it."""
        ratio = self.sigma[i + 1] / self.sigma[i]
        return ratio * z + self.alpha[i + 1] * (1 - self.shrink[i]) * z_0

    def ahead(self, z_0: Latents, previous: Latents | None, i: int) -> Latents:
        """z_0 halfway through step i, on the line through it and that of the step before, in the
        log of signal to noise; z_0 itself in the first step and the last. DPM-Solver++ (2M)."""
        if i == 0 or self.last(i):
            return z_0
        return z_0 + self.h[i] / (2 * self.h[i - 1]) * (z_0 - previous)

    def slope(self, z: Latents, z_0: Latents, i: int) -> Latents:
        """Of z / scale over sigma / scale, at level i. Not at noise alone, where this is 0 / 0."""
        return (z - self.scale[i] * z_0) / self.sigma[i]

    def along(self, z: Latents, slope: Latents, i: int) -> Latents:
        """One step with a slope; `toward` with the slope there."""
        run = self.sigma[i + 1] / self.scale[i + 1] - self.sigma[i] / self.scale[i]
        return self.scale[i + 1] * (z / self.scale[i] + run * slope)

    def posterior_std(self, i: int) -> Number:
        """Standard deviation of the latents at level i + 1 given those at i and z_0."""
        return self.sigma[i + 1] * (1 - self.shrink[i] ** 2).sqrt()


def is_flow(schedule: Schedule) -> bool:
    return isinstance(schedule, RectifiedFlow)


def needed(draw_noise: DrawNoise | None) -> DrawNoise:
    if draw_noise is None:
        raise UserError("this sampler draws noise at every step, so it needs draw_noise.")
    return draw_noise
