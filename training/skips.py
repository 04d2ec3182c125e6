"""Steps that were left out because their loss or gradient was not finite: counted, and too many."""

from typing import Any

import torch
from torch import Tensor

PATIENCE = 10  # steps in a row


class Skips:
    """Counts on the device; `check` reads the counts, which is the only wait.

    The loop checks when it writes a line of metrics, so it notices up to `log_every` steps late.
    Nothing is lost by that: a step that is left out moves nothing.
    """

    def __init__(self):
        self.counts = torch.zeros(3, dtype=torch.int64)  # in all, in a row now, longest row
        self.known = 0  # in all, at the last check

    def add(self, taken: Tensor) -> None:
        """taken: 1, or 0 if the step was left out."""
        missed = 1 - taken.detach().long()
        total, row, longest = self.counts.to(missed.device)
        row = (row + 1) * missed
        self.counts = torch.stack([total + missed, row, longest.maximum(row)])

    def check(self) -> tuple[int, int, bool]:
        """(left out in all, of these since the last check, whether that was ten in a row)"""
        total, _, longest = self.counts.tolist()
        new, self.known = total - self.known, total
        self.counts[2] = 0
        return total, new, longest >= PATIENCE

    def state_dict(self) -> dict[str, Any]:
        return {"counts": self.counts, "known": self.known}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.counts, self.known = state["counts"], state["known"]


def diverged(step: int, total: int) -> str:
    """What to say when it is hopeless."""
    return (
        f"{PATIENCE} steps in a row had a loss or gradient that was not finite ({total} so far), "
        f"so the run was stopped after step {step}. None of them moved a weight, and the state is "
        "saved. The usual causes, in this order: a learning rate too high (go on with --override "
        "learning_rate=...); the small range of float16 (--override precision=bf16, or fp32); "
        "images, or weights given to start from, that hold values which are not finite."
    )
