"""The times at which a sampler calls the network: noise first, the clean end left out.

A model is trained on all times; a sampler visits a few. Which, matters as much as the solver: much
noise decides on the composition, little noise on the texture.
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Float64, Real
from torch import Tensor

from foundation.errors import UserError, unknown_name
from ldm.schedule import TIMES, RectifiedFlow, Schedule, check_steps

Times = Real[Tensor, " steps"]


def trailing(schedule: Schedule, steps: int) -> Times:
    """Equal strides down from the noise; on a flow with its shift. The schedule's own times.

    Lin et al. 2023 (arXiv:2305.08891), table 2. The only one that begins at t = 999 for any number
    of steps and stays clear of the clean end, where a step as long is wasted.
    """
    return schedule.timesteps(steps)


def leading(schedule: Schedule, steps: int) -> Times:
    """Equal strides up from t = 1, as Stable Diffusion 1.x was published; does not begin at noise.

    Its latents at the first time still hold some of the image, but sampling begins with none.
    """
    check_steps(steps)
    times = np.arange(steps - 1, -1, -1) * (TIMES // steps)
    if times[0] < TIMES - 1:
        times = times + 1
    elif isinstance(schedule, RectifiedFlow):  # 1000 steps, of which none may be at 0
        return linspace(schedule, steps)
    return typed(schedule, times)


def linspace(schedule: Schedule, steps: int) -> Times:
    """Equal strides from 999 to 0, both included; on a flow to 1, since it has no noise at 0."""
    check_steps(steps)
    if isinstance(schedule, RectifiedFlow):
        return typed(schedule, np.linspace(TIMES - 1, 1, steps))
    return typed(schedule, np.linspace(TIMES - 1, 0, steps).round())


def karras(schedule: Schedule, steps: int, rho: float = 7.0) -> Times:
    """Equal strides of (sigma / alpha)^(1 / rho): more steps where there is little noise.

    Karras et al. 2022 (arXiv:2206.00364), eq. 5.
    """
    high, low = (x ** (1 / rho) for x in ends(schedule, "karras"))
    return times_of(schedule, torch.linspace(high, low, checked(steps), dtype=torch.float64) ** rho)


def exponential(schedule: Schedule, steps: int) -> Times:
    """Equal strides of log(sigma / alpha), as solvers in that variable like them."""
    high, low = (math.log(x) for x in ends(schedule, "exponential"))
    return times_of(schedule, torch.linspace(high, low, checked(steps), dtype=torch.float64).exp())


SPACINGS: dict[str, Callable[[Schedule, int], Times]] = {
    "exponential": exponential,
    "karras": karras,
    "leading": leading,
    "linspace": linspace,
    "trailing": trailing,
}
UNEQUAL = {"exponential", "karras"}  # strides of time


def listed(schedule: Schedule, times: Sequence[float]) -> Times:
    """Times of one's own, such as those that a search found best for a model.

    Sabour et al. 2024 (arXiv:2404.14507), for example: 999, 850, 736, 645, 545, 455, 343, 233, 124,
    24 for Stable Diffusion 1.5.
    """
    low = 1 if isinstance(schedule, RectifiedFlow) else 0
    falls = all(a > b for a, b in pairwise(times))
    if not times or not falls or not all(low <= t < TIMES for t in times):
        raise UserError(
            f"the times {', '.join(f'{t:g}' for t in times) or '(none)'} cannot be sampled along: "
            f"they must fall, from {TIMES - 1} (noise) at most to {low} (clean) at least. "
            "For example: 999,850,736,645,545,455,343,233,124,24."
        )
    return torch.tensor(times, dtype=torch.float64)


def shifted(schedule: Schedule, shift: float) -> RectifiedFlow:
    """The same flow, of whose steps more are at high noise, or below 1 fewer.

    Esser et al. 2024 (arXiv:2403.03206), eq. 23.
    """
    if not isinstance(schedule, RectifiedFlow):
        raise UserError("a shift is for flows; this model was trained on a table. Leave it out.")
    return RectifiedFlow(shift)


def find_spacing(name: str) -> Callable[[Schedule, int], Times]:
    if name not in SPACINGS:
        raise unknown_name(name, SPACINGS, "spacing")
    return SPACINGS[name]


def checked(steps: int) -> int:
    check_steps(steps)
    return steps


def typed(schedule: Schedule, times: np.ndarray) -> Times:
    """In the type in which the schedule has its own."""
    return torch.from_numpy(times).to(schedule.timesteps(1).dtype)


def ends(schedule: Schedule, spacing: str) -> tuple[float, float]:
    """sigma / alpha at the noisiest and at the cleanest time."""
    low = 1 if isinstance(schedule, RectifiedFlow) else 0
    alpha, sigma = schedule.exact(torch.tensor([TIMES - 1, low]))
    if not alpha[0] > 0:
        raise UserError(
            f"the spacing {spacing} divides sigma / alpha, which is infinite where this model "
            "begins (zero terminal SNR). Use trailing."
        )
    return tuple((sigma / alpha).tolist())


def times_of(schedule: Schedule, ratio: Float64[Tensor, " steps"]) -> Times:
    low = 1 if isinstance(schedule, RectifiedFlow) else 0
    return schedule.time_of(ratio).clamp(low, TIMES - 1)
