"""python benchmarks/samplers.py

How far each sampler is from the exact solution, by calls of the network. On data for which the
ideal denoiser and the solution of the ODE are known, Gaussian or a mixture of three in the plane: a
figure of the solver alone, with no model in it. Prints the Markdown tables of docs/sampling.md;
takes seconds.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).parents[1]))  # run from a checkout, whatever is installed

import torch

from benchmarks.mixture import IdealDenoiser, exact
from foundation.shapes import Denoise, Latents, Timesteps
from ldm.samplers import CALLS_PER_STEP, SAMPLERS, STOCHASTIC, NoiseLevels, unipc
from ldm.schedule import Schedule, ScheduleConfig, make_schedule
from training.cli import parse, run_main

STD = 0.5  # of the data
SCHEDULES = {
    "scaled_linear": ScheduleConfig(),
    "zero SNR": ScheduleConfig(zero_terminal_snr=True),
    "flow": ScheduleConfig(noise_schedule="flow"),
}


@dataclass(frozen=True, kw_only=True)
class Config:
    data: Literal["gaussian", "mixture"] = "gaussian"
    calls: tuple[int, ...] = (10, 20, 50)  # of the network


def main(argv: Sequence[str] | None = None) -> None:
    config = parse(Config, argv, __doc__)
    schedules = dict(SCHEDULES)
    if config.data == "mixture":
        del schedules["zero SNR"]  # the reference solution begins at a finite sigma / alpha
    columns = [f"{name}, {calls}" for name in schedules for calls in config.calls]
    print("| sampler | " + " | ".join(columns) + " |")
    print("|---" * (len(columns) + 1) + "|")
    measure = error if config.data == "gaussian" else error_on_mixture
    for name in [*sorted(SAMPLERS.keys() - STOCHASTIC), "unipc of order 3"]:
        errors = [
            measure(name, make_schedule(schedule), calls)
            for schedule in schedules.values()
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
    expected = noise * STD / (alpha**2 * STD**2 + sigma**2).sqrt()
    result = solve(sampler, denoise, noise, schedule, calls)
    return ((result - expected).norm() / expected.norm()).item()


def error_on_mixture(sampler: str, schedule: Schedule, calls: int) -> float:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(256, 2, 1, 1, generator=generator, dtype=torch.float64)
    result = solve(sampler, IdealDenoiser(schedule), noise, schedule, calls)
    expected = exact(noise, schedule, 999, None)
    return ((result - expected).norm() / expected.norm()).item()


def solve(
    sampler: str, denoise: Denoise, noise: Latents, schedule: Schedule, calls: int
) -> Latents:
    solver = partial(unipc, order=3) if sampler == "unipc of order 3" else SAMPLERS[sampler]
    steps = (calls - 1) // CALLS_PER_STEP.get(sampler, 1) + 1 - (sampler == "plms")
    return solver(denoise, noise, NoiseLevels(schedule, steps))


if __name__ == "__main__":
    run_main(main)
