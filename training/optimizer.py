"""The optimizer step: unscale, clip, and skip it whole if a loss or a gradient is not finite.

Nothing here waits for the device, except on MPS. Whether a step is applied is a tensor that the
fused optimizers and the EMA read on the device; the loop counts skipped steps there, too, and reads
the counts only when it writes a line of metrics anyway.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim import Optimizer

from foundation.shapes import Scalar
from training.distributed import full_tensor, local_tensor
from training.weights.muon import Muon

Metrics = dict[str, Tensor]
MAX_SKIPPED_IN_A_ROW = 10  # steps; so many show that the training has diverged


class OptimizerStep:
    """One step of one or several optimizers: either all of them apply it, or none does.

    The state holds the optimizers' moments and the loss scale. It does not hold their settings:
    these follow from the flags, which `--override` may have changed.
    """

    def __init__(
        self,
        optimizers: Mapping[str, Optimizer],
        clip_norm: float = math.inf,
        scaler: GradScaler | None = None,
        is_captured: bool = False,
    ):
        """Prepare the optimizers, whose moments it initializes.

        Args:
            optimizers: fused Adam or AdamW, or Muon, by name; they can skip a step on the device.
            clip_norm: largest gradient norm of each optimizer; larger gradients are scaled down.
            scaler: loss scaling for float16; every loss must then be multiplied by `scale`.
            is_captured: whether steps are recorded as a CUDA graph.
        """
        self.optimizers, self.clip_norm = dict(optimizers), clip_norm
        self.scaler = scaler or GradScaler(enabled=False)
        self.device = self.weights(next(iter(self.optimizers.values())))[0].device
        for optimizer in self.optimizers.values():
            self.initialize_moments(optimizer)
            for group in optimizer.param_groups:
                group["capturable"] = is_captured

    @property
    def scale(self) -> Scalar:
        """The factor to multiply every loss with before its backward pass; 1 unless in float16."""
        return self.scaler.scale(torch.ones((), device=self.device))

    def __call__(self, metrics: Metrics, learning_rates: Mapping[str, float | Tensor]) -> Metrics:
        """Apply the gradients that the weights hold, and clear them.

        Args:
            metrics: 0-dim tensors of this step, with its losses. If one of them, or a gradient
                norm, is not finite, the step is skipped.
            learning_rates: by the name of the optimizer.

        Returns:
            `gradient_norm` (`<name>_gradient_norm` of other optimizers than "optimizer"), before
            clipping; `loss_scale`, if losses are scaled; and `step_applied`: 1, or 0 if skipped.
        """
        measured = {}
        for name, optimizer in self.optimizers.items():
            self.scaler.unscale_(optimizer)
            weights = [weight for weight in self.weights(optimizer) if weight.grad is not None]
            key = "gradient_norm" if name == "optimizer" else f"{name}_gradient_norm"
            if weights:
                norm = full_tensor(nn.utils.clip_grad_norm_(weights, self.clip_norm))
            else:  # a discriminator that does not learn yet; PyTorch's 0 would lie on the CPU
                norm = torch.zeros((), device=self.device)
            measured[key] = norm
        if self.scaler.is_enabled():
            measured["loss_scale"] = self.scale
        values = [value.detach().float() for value in (*metrics.values(), *measured.values())]
        applied = torch.stack(values).isfinite().all().float()
        # The fused optimizers of MPS do not read `found_inf`, so the host must know.
        is_skipped = self.device.type == "mps" and not applied
        for name, optimizer in self.optimizers.items():
            for group in optimizer.param_groups:
                group["lr"] = learning_rates[name]
            # A fused optimizer reads this attribute on the device, and skips the step if it is 1.
            optimizer.found_inf = 1 - applied  # pyright: ignore[reportAttributeAccessIssue]
            if not is_skipped:
                optimizer.step()
        self.clear_gradients()
        self.scaler.update()
        return {**measured, "step_applied": applied}

    def clear_gradients(self) -> None:
        """Throw away the gradients that the weights hold."""
        for optimizer in self.optimizers.values():
            optimizer.zero_grad()

    def initialize_moments(self, optimizer: Optimizer) -> None:
        """Make the moments that the first step would make.

        A saved state can then be loaded into them, also where each rank holds a piece of them.
        """
        if isinstance(optimizer, Muon):
            optimizer.initialize()
            return
        for weight in self.weights(optimizer):
            optimizer.state[weight] = {
                "step": torch.zeros((), device=local_tensor(weight).device),
                "exp_avg": torch.zeros_like(weight),
                "exp_avg_sq": torch.zeros_like(weight),
            }

    def weights(self, optimizer: Optimizer) -> list[nn.Parameter]:
        """List the weights that an optimizer trains."""
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
def restore_buffers(
    buffers: Iterable[Tensor], saved: Iterable[Tensor], step_applied: Float[Tensor, ""]
) -> None:
    """Undo the changes of buffers, such as the statistics of a BatchNorm, if a step was skipped.

    saved: copies of the buffers from before the step.
    """
    for buffer, old in zip(buffers, saved, strict=True):
        buffer.copy_(torch.where(step_applied > 0, buffer, old))


class SkippedSteps:
    """A count of steps that were skipped because a loss or a gradient was not finite.

    It counts on the device; only `read` waits for it. The loop reads when it writes a line of
    metrics, so it stops a diverged training up to `log_every` steps late. That loses nothing: a
    skipped step moves no weight.
    """

    def __init__(self):
        self.counts: Int64[Tensor, 3]  # in all, in a row now, longest row since the last read
        self.counts = torch.zeros(3, dtype=torch.int64)
        self.total_at_last_read = 0

    def add(self, step_applied: Float[Tensor, ""]) -> None:
        """Count a step. step_applied: 1, or 0 if it was skipped."""
        skipped = 1 - step_applied.detach().long()
        total, row, longest = self.counts.to(skipped.device)
        row = (row + 1) * skipped
        self.counts = torch.stack([total + skipped, row, longest.maximum(row)])

    def read(self) -> tuple[int, int, bool]:
        """Return (skipped in all, skipped since the last read, whether the training diverged)."""
        total, _, longest = self.counts.tolist()
        new, self.total_at_last_read = total - self.total_at_last_read, total
        self.counts[2] = 0
        return total, new, longest >= MAX_SKIPPED_IN_A_ROW

    def state_dict(self) -> dict[str, Any]:
        return {"counts": self.counts, "known": self.total_at_last_read}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.counts, self.total_at_last_read = state["counts"], state["known"]


def divergence_message(step: int, skipped: int) -> str:
    """Explain why the run stops after this step. skipped: steps skipped in all."""
    return (
        f"{MAX_SKIPPED_IN_A_ROW} steps in a row had a loss or a gradient that was not finite "
        f"({skipped} so far), so the run was stopped after step {step}. None of them moved a "
        "weight, and the state is saved. The usual causes, in this order: a learning rate too high "
        "(go on with --override learning-rate=...); the small range of float16 (go on with "
        "--override precision=bf16, or fp32); images or initial weights with values that are not "
        "finite."
    )
