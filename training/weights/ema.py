"""Exponential moving average of the weights, in float32 whatever the weights are stored in."""

# pyright: reportPrivateImportUsage=false
# torch._foreach_*, which the optimizers of PyTorch use as well

import copy
from typing import Generic, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from foundation.errors import UserError
from training.distributed import local_tensor

Module = TypeVar("Module", bound=nn.Module)


class EMA(Generic[Module]):
    """An average of weights with a half-life in steps, which ignores the untrained beginning.

    decay(step) = min(2^(-1/halflife), (1 + step) / (10 + step)): the second term lets the average
    follow closely at first, so that it is usable at any time and does not remember the
    initialization (a fixed decay of 0.9999 still holds 13.5 % of it after 20,000 steps).
    """

    def __init__(self, module: Module, halflife: float):
        """Start the average with the weights of a module.

        halflife: optimizer steps after which the share of older weights has halved.

        Raises:
            UserError: the half-life is not above 0 steps.
        """
        if halflife <= 0:
            raise UserError(f"the EMA half-life must be above 0 steps, got {halflife}.")
        self.decay = 2 ** (-1 / halflife)
        self.module: Module = copy.deepcopy(module).float().eval().requires_grad_(False)

    @torch.no_grad()
    def update(
        self, module: nn.Module, step: int, step_applied: Float[Tensor, ""] | None = None
    ) -> None:
        """Move the average towards the weights of `module`.

        Args:
            step: the optimizer step that was just done; 0 is the first.
            step_applied: 0 if that step was skipped; the average then stays. None means 1.
        """
        self.move(module, self.rate(step), step_applied)

    def rate(self, step: int) -> float:
        """Return how far the average moves towards the weights after a step."""
        return 1 - min(self.decay, (1 + step) / (10 + step))

    @torch.no_grad()
    def move(
        self,
        module: nn.Module,
        rate: float | Float[Tensor, ""],
        step_applied: Float[Tensor, ""] | None = None,
    ) -> None:
        """Move the average towards the weights of `module` by a rate.

        Args:
            rate: a number, or a tensor on a GPU, such as a recorded step has it.
            step_applied: as for `update`.
        """
        if step_applied is None:
            torch._foreach_lerp_(*self._pairs(module), float(rate))
        elif step_applied.device.type == "cpu":
            torch._foreach_lerp_(*self._pairs(module), float(rate) * step_applied.item())
        else:
            self._interpolate(module, rate * step_applied)
        for average, buffer in zip(self.module.buffers(), module.buffers(), strict=True):
            average.copy_(buffer)

    def _interpolate(self, module: nn.Module, rate: Float[Tensor, ""]) -> None:
        """Move by a rate that lies on the device, so that the host does not wait for it.

        It needs as much memory as the gradients, which are freed by then.
        """
        averages, weights = self._pairs(module)
        differences = torch._foreach_sub(weights, averages)
        torch._foreach_mul_(differences, rate)
        torch._foreach_add_(averages, differences)

    def _pairs(self, module: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
        averages = [local_tensor(average) for average in self.module.parameters()]
        weights = [local_tensor(weight.detach()).float() for weight in module.parameters()]
        assert len(averages) == len(weights)
        return averages, weights

    def state_dict(self) -> dict[str, Tensor]:
        return self.module.state_dict()

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.module.load_state_dict(state)
