"""The timesteps at which a sampler calls the network, from noise down, without the clean end.

A model is trained on all timesteps; a sampler visits a few. Which ones matters as much as the
solver: the composition of an image is decided at high noise, its texture at low noise.
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Float64, Real
from torch import Tensor

from foundation.errors import UserError, unknown_name
from ldm.config import TRAIN_TIMESTEPS
from ldm.schedule import RectifiedFlow, Schedule, check_steps

Times = Real[Tensor, " steps"]  # falling


def trailing(schedule: Schedule, steps: int) -> Times:
    """Return equal strides from t = 999 down; for a flow, with its shift. The default.

    Lin et al. 2023 (arXiv:2305.08891), table 2. It is the only spacing that both begins at t = 999
    for any number of steps and does not spend a step next to the clean end, where it is wasted.
    """
    return schedule.timesteps(steps)


def leading(schedule: Schedule, steps: int) -> Times:
    """Return equal strides from t = 1 up, as Stable Diffusion 1.x was published.

    The first step is not at t = 999: there the network expects latents that still show some of an
    image, but sampling begins with pure noise.
    """
    check_steps(steps)
    times = np.arange(steps - 1, -1, -1) * (TRAIN_TIMESTEPS // steps)
    if times[0] < TRAIN_TIMESTEPS - 1:
        times = times + 1
    elif isinstance(schedule, RectifiedFlow):  # 1000 steps, none of which may be at t = 0
        return linspace(schedule, steps)
    return _as_timesteps(schedule, times)


def linspace(schedule: Schedule, steps: int) -> Times:
    """Return equal strides from 999 to 0, both included; for a flow to 1, as it has no noise at 0.

    Lin et al. 2023 (arXiv:2305.08891), table 2.
    """
    check_steps(steps)
    if isinstance(schedule, RectifiedFlow):
        return _as_timesteps(schedule, np.linspace(TRAIN_TIMESTEPS - 1, 1, steps))
    return _as_timesteps(schedule, np.linspace(TRAIN_TIMESTEPS - 1, 0, steps).round())


def karras(schedule: Schedule, steps: int, rho: float = 7.0) -> Times:
    """Return equal strides of (sigma / alpha)^(1 / rho): more steps where there is little noise.

    Karras et al. 2022 (arXiv:2206.00364), eq. 5.
    """
    check_steps(steps)
    high, low = _noise_to_signal_range(schedule, "karras")
    root = torch.linspace(high ** (1 / rho), low ** (1 / rho), steps, dtype=torch.float64)
    return _timesteps_of_ratio(schedule, root**rho)


def exponential(schedule: Schedule, steps: int) -> Times:
    """Return equal strides of log(sigma / alpha), the variable of the DPM-Solver family."""
    check_steps(steps)
    high, low = _noise_to_signal_range(schedule, "exponential")
    log = torch.linspace(math.log(high), math.log(low), steps, dtype=torch.float64)
    return _timesteps_of_ratio(schedule, log.exp())


SPACINGS: dict[str, Callable[[Schedule, int], Times]] = {
    "exponential": exponential,
    "karras": karras,
    "leading": leading,
    "linspace": linspace,
    "trailing": trailing,
}
UNEVEN_SPACINGS = {"exponential", "karras"}  # those whose strides in t differ


def find_spacing(name: str) -> Callable[[Schedule, int], Times]:
    """Return the spacing of this name.

    Raises:
        UserError: there is none; the message names the nearest and lists all.
    """
    if name not in SPACINGS:
        raise unknown_name(name, SPACINGS, "spacing")
    return SPACINGS[name]


def custom_timesteps(schedule: Schedule, times: Sequence[float]) -> Times:
    """Return the given timesteps as a tensor, for example those that suit a model best.

    Sabour et al. 2024 (arXiv:2404.14507) found 999, 850, 736, 645, 545, 455, 343, 233, 124, 24 for
    Stable Diffusion 1.5.

    Raises:
        UserError: they do not fall, or leave the range of the schedule.
    """
    low = _lowest(schedule)
    falls = all(a > b for a, b in pairwise(times))
    if not times or not falls or not all(low <= t < TRAIN_TIMESTEPS for t in times):
        raise UserError(
            f"the timesteps {', '.join(f'{t:g}' for t in times) or '(none)'} cannot be used for "
            f"sampling: they must fall, from at most {TRAIN_TIMESTEPS - 1} (noise) to at least "
            f"{low} (clean). For example: 999, 850, 736, 645, 545, 455, 343, 233, 124, 24."
        )
    return torch.tensor(times, dtype=torch.float64)


def with_shift(schedule: Schedule, shift: float) -> RectifiedFlow:
    """Return the same flow with another shift of a sampler's timesteps.

    Esser et al. 2024 (arXiv:2403.03206), eq. 23. Above 1, more of the steps are at high noise.

    Raises:
        UserError: the schedule is no flow.
    """
    if not isinstance(schedule, RectifiedFlow):
        raise UserError(
            "a shift is for rectified flow; this model has a variance-preserving schedule. Leave "
            "it out."
        )
    return RectifiedFlow(shift)


def _lowest(schedule: Schedule) -> int:
    """Return the cleanest timestep at which there is some noise."""
    return 1 if isinstance(schedule, RectifiedFlow) else 0


def _as_timesteps(schedule: Schedule, times: np.ndarray) -> Times:
    """Convert to a tensor of the dtype that the schedule's own timesteps have."""
    return torch.as_tensor(times).to(schedule.timesteps(1).dtype)


def _noise_to_signal_range(schedule: Schedule, spacing: str) -> tuple[float, float]:
    """Return sigma / alpha at the noisiest and at the cleanest timestep.

    Raises:
        UserError: it is infinite at the noisiest.
    """
    alpha, sigma = schedule.exact(torch.tensor([TRAIN_TIMESTEPS - 1, _lowest(schedule)]))
    if not alpha[0] > 0:
        raise UserError(
            f"the spacing {spacing} divides sigma / alpha, which is infinite where this model "
            "begins (zero terminal SNR). Use trailing."
        )
    high, low = sigma / alpha
    return float(high), float(low)


def _timesteps_of_ratio(schedule: Schedule, noise_to_signal: Float64[Tensor, " steps"]) -> Times:
    timesteps = schedule.timesteps_of_ratio(noise_to_signal)
    return timesteps.clamp(_lowest(schedule), TRAIN_TIMESTEPS - 1)
