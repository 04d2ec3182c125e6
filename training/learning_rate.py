"""The learning rate as a pure function of the step, so there is no scheduler state to save."""

import math

from torch.optim import Optimizer


def learning_rate(step: int, *, base: float, steps: int, warmup: int, cooldown: float) -> float:
    """Linear warm-up, constant, then a half-cosine to zero ("warm-up, stable, decay").

    Args:
        step: optimizer steps done so far, 0 ... steps - 1.
        base: the rate given on the command line; it is reached exactly and never scaled.
        warmup: steps of the warm-up; the first step already moves the weights.
        cooldown: share of the run, at its end, in which the rate falls; 1 is a plain cosine.
    """
    rising = min(1.0, (step + 1) / max(1, warmup))
    falling_steps = cooldown * steps
    left = steps - step
    if left >= falling_steps:
        return base * rising
    return base * rising * 0.5 * (1 - math.cos(math.pi * left / falling_steps))


def set_learning_rate(optimizer: Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate
