"""A tiny training, whose steps take no time."""

import json
from pathlib import Path

import torch
from torch import nn

from foundation.hashing import generator
from training.config import learning_rate
from training.loop import Plan, train
from training.optimizer import OptimizerStep
from training.run import Run
from training.weights.ema import EMA

PLAN = Plan(steps=12, images_per_step=4, save_every=5, evaluate_every=6, log_every=3)


class Toy:
    """Linear regression by AdamW with EMA; everything random depends on the step alone."""

    def __init__(self, folder: Path, config: dict | None = None):
        torch.manual_seed(0)
        self.run = Run(folder, config or {"seed": 0})
        self.model = nn.Linear(3, 1)
        self.ema = EMA(self.model, halflife=4)
        self.update = OptimizerStep(
            {"optimizer": torch.optim.AdamW(self.model.parameters(), fused=True)}
        )
        self.state = {"model": self.model, "ema": self.ema, "update": self.update}

    def batch(self, step: int) -> torch.Tensor:
        return torch.randn(4, 3, generator=generator(0, "train", step))

    def step(self, step: int) -> dict[str, torch.Tensor]:
        rate = learning_rate(step, base=0.1, steps=PLAN.steps, warmup=3, cooldown=0.5)
        x = self.batch(step)
        loss = (self.model(x) - x.sum(1, keepdim=True)).square().mean()
        loss.backward()
        metrics = {"loss": loss}
        metrics |= self.update(metrics, {"optimizer": rate})
        self.ema.update(self.model, step, metrics["step_applied"])
        return metrics

    def evaluate(self, step: int) -> dict[str, float]:
        return {"evaluated": float(step)}

    def train(self, plan: Plan = PLAN) -> None:
        train(self.run, plan, self.state, self.step, self.evaluate, "toy")

    def weights(self) -> list[torch.Tensor]:
        """Return all tensors that training changes: weights, averages and moments."""
        moments = self.update.state_dict()["moments"]["optimizer"].values()
        moments = [value for state in moments for value in state.values()]
        return [*self.model.state_dict().values(), *self.ema.state_dict().values(), *moments]

    def metrics(self) -> list[dict]:
        """Return the lines of metrics.jsonl without what depends on the clock."""
        lines = (self.run.path / "metrics.jsonl").read_text().splitlines()
        timeless = [json.loads(line) for line in lines]
        return [{k: v for k, v in m.items() if k != "images_per_second"} for m in timeless]
