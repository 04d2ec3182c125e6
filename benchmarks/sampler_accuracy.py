"""python benchmarks/sampler_accuracy.py

Relative error of each sampler by number of network calls, on data whose ideal denoiser and whose
solution of the ODE are known: a Gaussian, or a mixture of three in the plane. So it measures the
sampler alone, without a model. Prints the Markdown tables of docs/sampling.md, in seconds.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).parents[1]))  # prefer this checkout to an installed version

from training.cli import answer_early, parse, run_main


@dataclass(frozen=True, kw_only=True)
class Config:
    data: Literal["gaussian", "mixture"] = "gaussian"  # distribution of the data
    calls: tuple[int, ...] = (10, 20, 50)  # numbers of network calls


if __name__ == "__main__":
    answer_early(Config, __doc__)  # the imports below take seconds


import torch

from benchmarks.gaussian_mixture import IdealDenoiser, exact
from foundation.shapes import Denoise, Latents, Timesteps
from ldm.config import ScheduleConfig
from ldm.samplers import CALLS_PER_STEP, SAMPLERS, STOCHASTIC, NoiseLevels, unipc
from ldm.schedule import Schedule, make_schedule

STD = 0.5  # of the data
SCHEDULES = {
    "scaled_linear": ScheduleConfig(),
    "zero SNR": ScheduleConfig(zero_terminal_snr=True),
    "flow": ScheduleConfig(noise_schedule="flow"),
}


def main(argv: Sequence[str] | None = None) -> None:
    config = parse(Config, argv, __doc__)
    schedules = dict(SCHEDULES)
    if config.data == "mixture":
        del schedules["zero SNR"]  # the reference solution begins at a finite sigma / alpha
    columns = [f"{name}, {calls}" for name in schedules for calls in config.calls]
    print("| sampler | " + " | ".join(columns) + " |")
    print("|---" * (len(columns) + 1) + "|")
    measure = gaussian_error if config.data == "gaussian" else mixture_error
    for name in [*sorted(SAMPLERS.keys() - STOCHASTIC), "unipc of order 3"]:
        errors = [
            measure(name, make_schedule(schedule), calls)
            for schedule in schedules.values()
            for calls in config.calls
        ]
        print(f"| `{name}` | " + " | ".join(f"{100 * value:.2g} %" for value in errors) + " |")


def gaussian_error(sampler: str, schedule: Schedule, calls: int) -> float:
    """Compute the relative error of the result for Gaussian data."""
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)).double()

    def denoise(z_t: Latents, t: Timesteps) -> Latents:
        alpha, sigma = (x.double() for x in schedule(t))
        return alpha * STD**2 / (alpha**2 * STD**2 + sigma**2) * z_t

    alpha, sigma = schedule.exact(torch.tensor([999]))
    expected = noise * STD / (alpha**2 * STD**2 + sigma**2).sqrt()
    result = solve(sampler, denoise, noise, schedule, calls)
    return ((result - expected).norm() / expected.norm()).item()


def mixture_error(sampler: str, schedule: Schedule, calls: int) -> float:
    """Compute the relative error of the result for the mixture of Gaussians."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(256, 2, 1, 1, generator=generator, dtype=torch.float64)
    result = solve(sampler, IdealDenoiser(schedule), noise, schedule, calls)
    expected = exact(noise, schedule, 999, None)
    return ((result - expected).norm() / expected.norm()).item()


def solve(
    sampler: str, denoise: Denoise, noise: Latents, schedule: Schedule, calls: int
) -> Latents:
    """Sample with at most `calls` calls of the denoiser."""
    solver = partial(unipc, order=3) if sampler == "unipc of order 3" else SAMPLERS[sampler]
    return solver(denoise, noise, NoiseLevels(schedule, steps_for_calls(sampler, calls)))


def steps_for_calls(sampler: str, calls: int) -> int:
    """Return the number of steps that need at most `calls` network calls.

    The last step, to the clean end, needs one call with every sampler; the first one of plms has an
    additional call.
    """
    steps = (calls - 1) // CALLS_PER_STEP.get(sampler, 1) + 1
    return steps - 1 if sampler == "plms" else steps


if __name__ == "__main__":
    run_main(main, Config)
