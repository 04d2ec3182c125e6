"""Exponential moving average of the weights, in float32 whatever the weights are stored in."""

import copy

import torch
from torch import Tensor, nn

from foundation.errors import UserError
from training.fsdp import local


class EMA:
    """Averages weights with a half-life stated in steps, ignoring the untrained beginning.

    decay(step) = min(2^(-1/halflife), (1 + step) / (10 + step)): the second term lets the average
    follow closely at first, so that it is usable at any time and does not remember the
    initialization (a fixed decay of 0.9999 still holds 13.5 % of it after 20,000 steps).
    """

    def __init__(self, module: nn.Module, halflife: float):
        if halflife <= 0:
            raise UserError(f"the EMA half-life must be above 0 steps, got {halflife}.")
        self.decay = 2 ** (-1 / halflife)
        self.module = copy.deepcopy(module).float().eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, module: nn.Module, step: int, taken: Tensor | None = None) -> None:
        """Moves towards `module` after optimizer step `step` (0 is the first).

        taken: 0 if the step was left out: the average then stays where it is. None is 1.
        """
        towards = 1 - min(self.decay, (1 + step) / (10 + step))
        if taken is None or taken.device.type == "cpu":
            rate = towards if taken is None else towards * taken.item()
            torch._foreach_lerp_(*self._pairs(module), rate)
        else:
            self.move(module, towards * taken)
        for mine, theirs in zip(self.module.buffers(), module.buffers(), strict=True):
            mine.copy_(theirs)

    def move(self, module: nn.Module, rate: Tensor) -> None:
        """Towards `module`, by a share that only the device knows: the host does not wait for it.

        Needs as much room as the gradients, which are gone by then.
        """
        averages, weights = self._pairs(module)
        differences = torch._foreach_sub(weights, averages)
        torch._foreach_mul_(differences, rate)
        torch._foreach_add_(averages, differences)

    def _pairs(self, module: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
        averages = [local(average) for average in self.module.parameters()]
        weights = [local(weight.detach()).float() for weight in module.parameters()]
        assert len(averages) == len(weights)
        return averages, weights

    def state_dict(self) -> dict[str, Tensor]:
        return self.module.state_dict()

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.module.load_state_dict(state)
