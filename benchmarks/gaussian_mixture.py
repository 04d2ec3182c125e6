"""A mixture of Gaussians in the plane: data whose ideal denoiser is known, but not linear.

Unlike for one Gaussian, the paths of the ODE bend and separate. A point is an image of one pixel
with two channels.
"""

import math

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from foundation.shapes import Latents, Timesteps
from ldm.schedule import RectifiedFlow, Schedule

MEANS = torch.tensor([[1.0, 0.4], [-0.8, 1.0], [-0.2, -1.1]], dtype=torch.float64)
WEIGHTS = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
STD = 0.4  # of each Gaussian

Points = Float64[Tensor, "b 2 1 1"]


class IdealDenoiser:
    """The exact E[z_0 | z_t] in float64.

    Attributes:
        calls: number of calls so far.
        visited: z_t of the calls, by time.
    """

    def __init__(self, schedule: Schedule):
        self.schedule, self.calls = schedule, 0
        self.visited: dict[float, Latents] = {}

    def __call__(self, z_t: Float[Tensor, "b 2 1 1"], t: Timesteps) -> Points:
        self.calls += 1
        self.visited[float(t[0])] = z_t
        alpha, sigma = (float(x) for x in self.schedule.exact(t[:1]))
        return posterior_mean(z_t.double(), alpha, sigma)


def posterior_mean(z: Points, alpha: float, sigma: float) -> Points:
    """Compute E[z_0 | z] for z = alpha z_0 + sigma noise."""
    points = z.flatten(1)[:, None]  # (b, 1, 2), to broadcast with (components, 2)
    variance = alpha**2 * STD**2 + sigma**2
    squared_distance = (points - alpha * MEANS).square().sum(dim=-1)
    responsibility = (WEIGHTS.log() - squared_distance / (2 * variance)).softmax(dim=1)[..., None]
    component_means = MEANS + alpha * STD**2 / variance * (points - alpha * MEANS)
    return (responsibility * component_means).sum(dim=1)[..., None, None]


def exact(
    noise: Points, schedule: Schedule, start: float, end: float | None, steps: int = 400
) -> Points:
    """Solve the probability-flow ODE from one time to another by a method that is no sampler.

    It is the classical Runge-Kutta method of fourth order in log(sigma / alpha).

    Args:
        end: None for the clean end.
    """
    times = torch.tensor([start, start if end is None else end], dtype=torch.float64)
    alpha, sigma = schedule.exact(times)
    u, last = (sigma / alpha).log().tolist()
    last = math.log(1e-6) if end is None else last
    flow = isinstance(schedule, RectifiedFlow)

    def scales(u: float) -> tuple[float, float]:
        ratio = math.exp(u)
        alpha = 1 / (1 + ratio) if flow else 1 / math.hypot(1, ratio)
        return alpha, alpha * ratio

    def slope(x: Points, u: float) -> Points:
        """Compute dx/du of x = z / alpha: dx/d(sigma / alpha) is (x - z_0) / (sigma / alpha)."""
        alpha, sigma = scales(u)
        return x - posterior_mean(alpha * x, alpha, sigma)

    h, x = (last - u) / steps, noise / scales(u)[0]
    for _ in range(steps):
        k_1 = slope(x, u)
        k_2 = slope(x + h / 2 * k_1, u + h / 2)
        k_3 = slope(x + h / 2 * k_2, u + h / 2)
        k_4 = slope(x + h * k_3, u + h)
        x, u = x + h / 6 * (k_1 + 2 * k_2 + 2 * k_3 + k_4), u + h
    return scales(u)[0] * x
