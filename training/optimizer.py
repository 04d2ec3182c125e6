"""From gradients to weights: unscaled, clipped, and left out as a whole if anything is not finite.

Nothing here waits for the device. Whether a step is taken is a number that the fused optimizers and
the EMA read there; the loop counts such numbers and looks at them when it writes a line anyway.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim import Optimizer

from training.fsdp import local, whole
from training.learning_rate import set_learning_rate

Metrics = dict[str, Tensor]


class Update:
    """The step of one or several optimizers: all of them take it, or none.

    Its state holds the optimizers' moments and the loss scale. Their settings are not part of it:
    they follow from the flags, which may have been changed by `--override`.
    """

    def __init__(
        self,
        optimizers: Mapping[str, Optimizer],
        clip_norm: float = math.inf,
        scaler: GradScaler | None = None,
    ):
        """
        Args:
            optimizers: Adams by name, fused: they can be told on the device to stand still.
            clip_norm: the gradient of each is scaled down to this norm.
            scaler: of the losses, for float16; `scale` must then be on every gradient.
        """
        self.optimizers, self.clip_norm = dict(optimizers), clip_norm
        self.scaler = scaler or GradScaler(enabled=False)
        self.device = self.weights(next(iter(self.optimizers.values())))[0].device
        for optimizer in self.optimizers.values():
            self.begin(optimizer)

    @property
    def scale(self) -> Tensor:
        """What every loss must be multiplied with before its backward pass; 1 unless in float16."""
        return self.scaler.scale(torch.ones((), device=self.device))

    def __call__(self, metrics: Metrics, rates: Mapping[str, float]) -> Metrics:
        """Takes the step with the gradients that the weights hold, and clears them.

        Args:
            metrics: of this step, losses among them: if one is not finite, it is left out.
            rates: learning rate by optimizer.

        Returns:
            `gradient_norm`, before clipping, `loss_scale`, if there is one, and `taken`: 1, or 0 if
            the step was left out.
        """
        told = {}
        for name, optimizer in self.optimizers.items():
            self.scaler.unscale_(optimizer)
            norm = nn.utils.clip_grad_norm_(self.weights(optimizer), self.clip_norm)
            norm = whole(norm)
            told["gradient_norm" if name == "optimizer" else f"{name}_gradient_norm"] = norm
        if self.scaler.is_enabled():
            told["loss_scale"] = self.scale
        values = [value.detach().float() for value in (*metrics.values(), *told.values())]
        taken = torch.stack(values).isfinite().all().float()
        for name, optimizer in self.optimizers.items():
            set_learning_rate(optimizer, rates[name])
            optimizer.found_inf = 1 - taken  # how a fused optimizer is told to stand still
            optimizer.step()
            optimizer.zero_grad()
        self.scaler.update()
        return {**told, "taken": taken}

    def begin(self, optimizer: Optimizer) -> None:
        """Makes the moments that Adam's first step would make, so that a saved state has a place to
        go to, whatever piece of it is this rank's."""
        for weight in self.weights(optimizer):
            optimizer.state[weight] = {
                "step": torch.zeros((), device=local(weight).device),
                "exp_avg": torch.zeros_like(weight),
                "exp_avg_sq": torch.zeros_like(weight),
            }

    def weights(self, optimizer: Optimizer) -> list[nn.Parameter]:
        return [weight for group in optimizer.param_groups for weight in group["params"]]

    def state_dict(self) -> dict[str, Any]:
        moments = {name: each.state_dict()["state"] for name, each in self.optimizers.items()}
        return {"moments": moments, "scaler": self.scaler.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, optimizer in self.optimizers.items():
            settings = optimizer.state_dict()["param_groups"]
            moments = state["moments"][name]
            optimizer.load_state_dict({"state": moments, "param_groups": settings})
        if state["scaler"]:  # empty where the state was saved in another precision
            self.scaler.load_state_dict(state["scaler"])


@torch.no_grad()
def undo(buffers: Iterable[Tensor], before: Iterable[Tensor], taken: Tensor) -> None:
    """Gives buffers, such as the statistics of a BatchNorm, their values from before a step that
    was not taken."""
    for now, old in zip(buffers, before, strict=True):
        now.copy_(torch.where(taken > 0, now, old))
