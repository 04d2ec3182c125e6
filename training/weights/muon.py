"""Muon: momentum whose step is made orthogonal, for the matrices of a network.

Jordan et al. 2024 (https://kellerjordan.github.io/posts/muon). The step of a matrix is the sum of
its singular vectors' products, all with a weight near 1, so rare directions learn as fast as
frequent ones. A convolution counts as the matrix of its outputs by everything else. Vectors, and
the first and last layers of a network, belong to AdamW.
"""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim import Optimizer

from training.precision import has_bf16

Matrices = Float[Tensor, "count rows columns"]
# Of the polynomial a s + b s^3 + c s^5, which brings singular values s near 1 in a few rounds.
COEFFICIENTS = 3.4445, -4.7750, 2.0315
ROUNDS = 5


class Muon(Optimizer):
    """The optimizer of matrices. `OptimizerStep` sets its learning rate, and may skip steps.

    Args:
        matrices: weights with at least two axes.
        momentum: share of the momentum that stays in each step (Nesterov's form).
        weight_decay: as in AdamW.
    """

    def __init__(
        self, matrices: Iterable[nn.Parameter], momentum: float = 0.95, weight_decay: float = 0.0
    ):
        settings = {"lr": 0.0, "momentum": momentum, "weight_decay": weight_decay}
        super().__init__(list(matrices), settings)
        self.found_inf: Tensor | None = None  # 1: skip the step; `OptimizerStep` sets it

    def initialize(self) -> None:
        """Make the momentum that the first step would make, so that a saved one can be loaded."""
        for group in self.param_groups:
            for weight in group["params"]:
                self.state[weight] = {"momentum": torch.zeros_like(weight)}

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Move all matrices that have a gradient. Nothing here waits for the device."""
        for group in self.param_groups:
            alike: defaultdict[torch.Size, list[nn.Parameter]] = defaultdict(list)
            for weight in group["params"]:
                if weight.grad is not None:
                    alike[as_matrix(weight).shape].append(weight)
            for weights in alike.values():
                self.move(weights, group)

    def move(self, weights: list[nn.Parameter], group: dict[str, Any]) -> None:
        """Move matrices of the same shape, together."""
        applied = 1.0 if self.found_inf is None else 1 - self.found_inf
        keep, rate = group["momentum"], group["lr"] * applied
        directions: list[Tensor] = []
        for weight in weights:
            assert weight.grad is not None
            momentum, gradient = self.state[weight]["momentum"], weight.grad
            if self.found_inf is not None:  # what is not finite must not reach the momentum
                gradient = torch.where(self.found_inf > 0, 0.0, gradient)
            momentum.mul_(keep * applied + (1 - applied)).add_(gradient)
            directions.append(as_matrix(gradient + keep * momentum))
        steps = orthogonal(torch.stack(directions))
        rows, columns = steps.shape[1:]
        scale = max(1.0, rows / columns) ** 0.5
        for weight, step in zip(weights, steps, strict=True):
            weight.mul_(1 - rate * group["weight_decay"])
            weight.sub_(rate * scale * step.view_as(weight))


def as_matrix(weight: Tensor) -> Float[Tensor, "rows columns"]:
    """Return a weight as a matrix: its outputs by everything else."""
    return weight.flatten(1)


def orthogonal(matrices: Matrices) -> Matrices:
    """Bring all singular values between about 0.7 and 1.2, by Newton-Schulz iterations.

    Each replaces X by (a + b X X^T + c (X X^T)^2) X, in bf16 where the hardware has it. Singular
    values that are far smaller than the largest one stay smaller.

    Returns:
        In float32.
    """
    if matrices.shape[1] > matrices.shape[2]:
        return orthogonal(matrices.mT).mT
    low = torch.bfloat16 if has_bf16(matrices.device) else torch.float32
    norms = torch.linalg.matrix_norm(matrices, keepdim=True)
    x = (matrices / (norms + 1e-7)).to(low)
    a, b, c = COEFFICIENTS
    for _ in range(ROUNDS):
        products = x @ x.mT
        x = torch.baddbmm(x, b * products + c * (products @ products), x, beta=a)
    return x.float()
