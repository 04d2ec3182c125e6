"""UniPC: predictor and corrector of one family, for any order."""

import torch
from jaxtyping import Float64
from torch import Tensor

from foundation.errors import UserError
from foundation.shapes import Denoise, Latents
from ldm.samplers.levels import DrawNoise, Levels, Path, Steps
from ldm.schedule import Schedule

ORDERS = (1, 2, 3)


@torch.no_grad()
def unipc(
    denoise: Denoise,
    noise: Latents,
    schedule: Schedule,
    steps: Steps = 20,
    draw_noise: DrawNoise | None = None,
    *,
    order: int = 2,
    start_at_sigma: bool = False,
) -> Latents:
    """Zhao et al. 2023 (arXiv:2302.04867), algorithms 5 to 8, with B_2(h); order + 1.

    Each step is predicted from up to `order` earlier calls, and corrected by the call that the next
    step makes anyway: one call per step. The first and the last steps are of lower order.
    """
    if order not in ORDERS:
        raise UserError(f"unipc has order {', '.join(map(str, ORDERS))}, not {order}.")
    path = Path(schedule, steps, noise, start_at_sigma)
    z, before, used = path.start, path.start, 1
    known: list[Latents] = []  # z_0 of earlier calls, the newest first
    for i in range(len(path)):
        z_0 = denoise(z, path.time(i))
        if i > 0:
            z = step(path, before, i - 1, known, used, z_0)
        known = [z_0, *known[: order - 1]]
        used = min(order, i + 1, len(path) - i)
        before, z = z, step(path, z, i, known, used, None)
    return z


def step(
    path: Path,
    z: Latents,
    i: int,
    known: list[Latents],
    order: int,
    arrived: Latents | None,
) -> Latents:
    """From level i to the next; with `arrived`, z_0 as called there, corrected by it.

    known: z_0 of the calls at levels i, i - 1, ...
    """
    newest, h = known[0], path.h[i]
    result = path.toward(z, newest, i)
    if order == 1 and arrived is None:
        return result
    positions, differences = [], []  # of earlier calls, in strides of this step; per stride
    for k in range(1, order):
        position = -path.h[i - k : i].sum() / h
        if position.isfinite():  # from noise alone: infinitely far away
            positions.append(position)
            differences.append((known[k] - newest) / position)
    if arrived is not None:
        positions.append(torch.ones((), dtype=torch.float64))
        differences.append(arrived - newest)
    if not positions:
        return result
    halved = order == (1 if arrived is not None else 2)  # as the paper has it
    weights = [0.5] if halved else solve(torch.stack(positions), h)
    change = sum(w * d for w, d in zip(weights, differences, strict=True))
    return result + path.alpha[i + 1] * (1 - path.shrink[i]) * change


def solve(positions: Levels, h: Float64[Tensor, ""]) -> Levels:
    """Weights that make the step exact for polynomials z_0 (ibid., eq. 9, in our sign of h)."""
    count = len(positions)
    phi = torch.expm1(-h)
    scale, factorial, right = phi, 1.0, []
    term = phi / -h - 1
    for n in range(1, count + 1):
        right.append(term * factorial / scale)
        factorial *= n + 1
        term = term / -h - 1 / factorial
    powers = torch.stack([positions**n for n in range(count)])
    return torch.linalg.solve(powers, torch.stack(right))
