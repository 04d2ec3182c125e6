"""python benchmarks/samplers.py

How far each sampler is from the exact solution, by calls of the network. On Gaussian data, for
which the ideal denoiser and the solution of the ODE are known: a figure of the solver alone, with
no model in it. Prints the Markdown table of docs/sampling.md; takes seconds.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # run from a checkout, whatever is installed

import torch

from ldm.samplers import CALLS_PER_STEP, SAMPLERS, STOCHASTIC
from ldm.schedule import Schedule, ScheduleConfig, make_schedule
from ldm.shapes import Latents, Timesteps
from training.cli import parse, run_main

STD = 0.5  # of the data
SCHEDULES = {
    "scaled_linear": ScheduleConfig(),
    "zero SNR": ScheduleConfig(zero_terminal_snr=True),
    "flow": ScheduleConfig(noise_schedule="flow"),
}


@dataclass(frozen=True, kw_only=True)
class Config:
    calls: tuple[int, ...] = (10, 20, 50)  # of the network


def main(argv: Sequence[str] | None = None) -> None:
    config = parse(Config, argv, __doc__)
    columns = [f"{name}, {calls}" for name in SCHEDULES for calls in config.calls]
    print("| sampler | " + " | ".join(columns) + " |")
    print("|---" * (len(columns) + 1) + "|")
    for name in sorted(SAMPLERS.keys() - STOCHASTIC):
        errors = [
            error(name, make_schedule(schedule), calls)
            for schedule in SCHEDULES.values()
            for calls in config.calls
        ]
        print(f"| `{name}` | " + " | ".join(f"{100 * value:.2g} %" for value in errors) + " |")


def error(sampler: str, schedule: Schedule, calls: int) -> float:
    """Of the result, relative to the exact one."""
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)).double()

    def denoise(z_t: Latents, t: Timesteps) -> Latents:
        alpha, sigma = (x.double() for x in schedule(t))
        return alpha * STD**2 / (alpha**2 * STD**2 + sigma**2) * z_t

    alpha, sigma = schedule.exact(torch.tensor([999]))
    exact = noise * STD / (alpha**2 * STD**2 + sigma**2).sqrt()
    steps = (calls - 1) // CALLS_PER_STEP.get(sampler, 1) + 1 - (sampler == "plms")
    result = SAMPLERS[sampler](denoise, noise, schedule, steps)
    return ((result - exact).norm() / exact.norm()).item()


if __name__ == "__main__":
    run_main(main)
