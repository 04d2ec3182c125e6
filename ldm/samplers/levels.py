"""The noise levels that a sampler passes: where it calls the network, and alpha and sigma there."""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float64, Real
from torch import Tensor

from foundation.errors import UserError
from foundation.shapes import Latents, Number, Timesteps
from ldm.schedule import RectifiedFlow, Schedule

PerLevel = Float64[Tensor, " levels"]
Times = Real[Tensor, " steps"]  # falling, within those of the schedule

# draw_noise(a, b): unit noise for the step from angle a down to angle b, each image's own. The
# angle is atan2(sigma, alpha) / (pi / 2): 1 is noise alone, 0 is clean, whatever the schedule.
DrawNoise = Callable[[float, float], Latents]


class NoiseLevels:
    """alpha and sigma at the times of the network calls and, one more, at the clean end.

    Step i goes from level i to level i + 1; the last one ends in the clean image. Coefficients are
    computed once, in float64 on the CPU, so that no step waits for a GPU.

    Attributes:
        times: of the network calls, noise first; one per step.
        alpha, sigma, angle: one more than steps.
        snr_ratio: by how much sigma / alpha shrinks in each step, from 1 (not at all) to 0.
        log_snr_step: by how much log(alpha / sigma) grows in each step (half the log of the signal
            to noise ratio); infinite to the clean end and from noise alone.
        scale: where z_0 stays the same, z / scale is a straight line over sigma / scale; it is
            chosen so that the lines of real models are straightest.
    """

    def __init__(self, schedule: Schedule, steps: int | Times):
        """steps: their number, at the schedule's own times (`trailing`); or the times themselves.

        Raises:
            UserError: a number of steps that the schedule does not have.
        """
        times = schedule.timesteps(steps) if isinstance(steps, int) else steps
        alpha, sigma = schedule.exact(times)
        self.schedule, self.times = schedule, times
        self.alpha = torch.cat([alpha, alpha.new_ones(1)])
        self.sigma = torch.cat([sigma, sigma.new_zeros(1)])
        angles = torch.atan2(self.sigma, self.alpha) / (math.pi / 2)
        self.angle = [float(angle) for angle in angles]
        self.snr_ratio = (self.sigma[1:] * self.alpha[:-1]) / (self.alpha[1:] * self.sigma[:-1])
        self.log_snr_step = -self.snr_ratio.log()
        is_flow = isinstance(schedule, RectifiedFlow)
        self.scale = torch.ones_like(self.alpha) if is_flow else self.alpha

    def __len__(self) -> int:
        """Return the number of steps."""
        return len(self.times)

    def time(self, i: int, z: Latents) -> Timesteps:
        """Return the timestep of level i, once per image; on the CPU, so that guidance can see it.

        z: the latents, for the number of images.
        """
        return self.times[i].expand(len(z))

    def is_last(self, i: int) -> bool:
        """Return whether step i ends in the clean image."""
        return i == len(self) - 1

    def step_towards(self, z: Latents, z_0: Latents, i: int) -> Latents:
        """Take step i; exact if z_0 stays the same along it."""
        ratio = self.sigma[i + 1] / self.sigma[i]
        return ratio * z + self.alpha[i + 1] * (1 - self.snr_ratio[i]) * z_0

    def extrapolate(self, z_0: Latents, previous: Latents | None, i: int) -> Latents:
        """Extrapolate z_0 to the middle of step i, from this estimate and the previous one.

        Linear in log(alpha / sigma), as in DPM-Solver++ (2M). In the first and the last step z_0
        itself is returned.
        """
        if i == 0 or previous is None or self.is_last(i):
            return z_0
        return z_0 + self.log_snr_step[i] / (2 * self.log_snr_step[i - 1]) * (z_0 - previous)

    def slope(self, z: Latents, z_0: Latents, i: int) -> Latents:
        """Compute d(z / scale) / d(sigma / scale) at level i; not at noise alone (0 / 0)."""
        return (z - self.scale[i] * z_0) / self.sigma[i]

    def euler_step(self, z: Latents, slope: Latents, i: int) -> Latents:
        """Take step i with a slope; the same as `step_towards` with the slope at its beginning."""
        run = self.sigma[i + 1] / self.scale[i + 1] - self.sigma[i] / self.scale[i]
        return self.scale[i + 1] * (z / self.scale[i] + run * slope)

    def posterior_std(self, i: int) -> Number:
        """Return the standard deviation of the latents at level i + 1, given those at i and z_0."""
        return self.sigma[i + 1] * (1 - self.snr_ratio[i] ** 2).sqrt()


def require_noise(draw_noise: DrawNoise | None) -> DrawNoise:
    """Return `draw_noise`, or refuse to sample without it."""
    if draw_noise is None:
        raise UserError("this sampler adds noise in every step, so it needs draw_noise.")
    return draw_noise
