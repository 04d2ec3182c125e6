"""UniPC: a predictor and a corrector of the same family, for several orders."""

from typing import cast

import torch
from jaxtyping import Float64
from torch import Tensor

from foundation.errors import UserError
from foundation.shapes import Denoise, Latents
from ldm.samplers.levels import NoiseLevels, PerLevel

ORDERS = (1, 2, 3)


@torch.no_grad()
def unipc(denoise: Denoise, z: Latents, levels: NoiseLevels, *, order: int = 2) -> Latents:
    """UniPC with B_2(h): convergence of order `order` + 1, one call per step.

    Each step is predicted from up to `order` earlier calls, and corrected by the call that the next
    step makes anyway. The first and the last steps are of lower order.
    Zhao et al. 2023 (arXiv:2302.04867), algorithms 5 to 8.

    Raises:
        UserError: an order that is not 1, 2 or 3.
    """
    if order not in ORDERS:
        raise UserError(f"unipc has order {', '.join(map(str, ORDERS))}, not {order}.")
    z_before, used_order = z, 1
    estimates: list[Latents] = []  # z_0 of earlier calls, the newest first
    for i in range(len(levels)):
        z_0 = denoise(z, levels.time(i, z))
        if i > 0:
            z = unipc_step(levels, z_before, i - 1, estimates, used_order, corrected_by=z_0)
        estimates = [z_0, *estimates[: order - 1]]
        used_order = min(order, i + 1, len(levels) - i)
        z_before, z = z, unipc_step(levels, z, i, estimates, used_order)
    return z


def unipc_step(
    levels: NoiseLevels,
    z: Latents,
    i: int,
    estimates: list[Latents],
    order: int,
    corrected_by: Latents | None = None,
) -> Latents:
    """Take step i: predict its end, or correct it by the estimate of z_0 that was made there.

    estimates: z_0 of the calls at levels i, i - 1, ...
    """
    newest, h = estimates[0], levels.log_snr_step[i]
    first_order = levels.step_towards(z, newest, i)
    if order == 1 and corrected_by is None:
        return first_order
    # Positions of other calls in units of this step, and the slope of z_0 from here to there.
    positions: list[Tensor] = []
    slopes: list[Latents] = []
    for k in range(1, order):
        position = -levels.log_snr_step[i - k : i].sum() / h
        if position.isfinite():  # a call from noise alone lies infinitely far away
            positions.append(position)
            slopes.append((estimates[k] - newest) / position)
    if corrected_by is not None:
        positions.append(torch.ones((), dtype=torch.float64))
        slopes.append(corrected_by - newest)
    if not positions:
        return first_order
    is_halved = order == (2 if corrected_by is None else 1)  # the paper's weight in these cases
    weights = [0.5] if is_halved else solve_weights(torch.stack(positions), h)
    change = weights[0] * slopes[0]
    for weight, slope in zip(weights[1:], slopes[1:], strict=True):
        change = change + weight * slope
    return first_order + levels.alpha[i + 1] * (1 - levels.snr_ratio[i]) * change


def solve_weights(positions: PerLevel, h: Float64[Tensor, ""]) -> PerLevel:
    """Compute weights that make a step exact for polynomials z_0 (eq. 9; our sign of h differs)."""
    count = len(positions)
    phi = torch.expm1(-h)
    term, factorial = phi / -h - 1, 1.0
    right: list[Tensor] = []
    for n in range(1, count + 1):
        right.append(term * factorial / phi)
        factorial *= n + 1
        term = term / -h - 1 / factorial
    powers = torch.stack([positions**n for n in range(count)])
    return cast(Tensor, torch.linalg.solve(powers, torch.stack(right)))  # pyright: ignore[reportUnknownMemberType]
