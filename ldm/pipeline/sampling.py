"""Sampling: sampler, timesteps, guidance, noise and task put together, from requests to latents."""

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from foundation.errors import NotFiniteError, UserError
from foundation.shapes import Latents
from ldm.denoiser import BoundNetwork, Conditioning, Denoiser, concatenate
from ldm.guidance import Guidance, GuidedDenoiser
from ldm.pipeline.batching import Request, make_noise
from ldm.samplers import CALLS_PER_STEP, DrawNoise, NoiseLevels, find_sampler
from ldm.samplers.noise import SeededNoise
from ldm.samplers.unipc import ORDERS
from ldm.schedule import Schedule, check_steps
from ldm.tasks.base import TEXT_TO_IMAGE, Task, count_steps, last_times
from ldm.timesteps import UNEVEN_SPACINGS, Times, custom_timesteps, find_spacing, with_shift


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How latents are drawn: everything but prompts, seeds, size and task.

    Raises:
        UserError: settings that do not exist or do not go together.
    """

    sampler: str = "dpmpp_2m"
    steps: int = 25
    spacing: str = "trailing"  # how timesteps are spaced: a name of ldm.timesteps.SPACINGS
    times: tuple[float, ...] | None = None  # timesteps, in place of steps and spacing
    # Rectified flow: above 1, more steps at high noise; None is the model's own shift.
    shift: float | None = None
    eta: float | None = None  # 0 to 1: share of fresh noise; for samplers that have this option
    order: int | None = None  # that of unipc
    clip_range: float | None = None  # estimates of the clean latents are clipped to -this, this
    guidance: Guidance = field(default_factory=Guidance)

    def __post_init__(self):
        find_spacing(self.spacing)
        check_steps(self.steps)
        if self.eta is not None and not 0 <= self.eta <= 1:
            raise UserError(f"eta is {self.eta:g}; it must be from 0 to 1.")
        accepted = inspect.signature(find_sampler(self.sampler)).parameters
        for name in ("eta", "order"):
            if getattr(self, name) is not None and name not in accepted:
                raise UserError(f"the sampler {self.sampler} has no {name}; leave it out.")
        if self.clip_range is not None and not 0 < self.clip_range < math.inf:
            raise UserError(
                f"clip_range is {self.clip_range:g}; it must be a number above 0. Latents have a "
                "standard deviation of 1; most lie within 4."
            )
        if self.shift is not None and not self.shift > 0:
            raise UserError(f"shift is {self.shift:g}; it must be above 0, and 1 is none.")
        if self.shift is not None and (self.spacing != "trailing" or self.times is not None):
            raise UserError("a shift moves the timesteps of the spacing trailing, and of no other.")
        if self.order not in (None, *ORDERS):
            raise UserError(f"unipc has order {', '.join(map(str, ORDERS))}, not {self.order}.")
        if self.sampler == "plms" and self.spacing in UNEVEN_SPACINGS:
            raise UserError(
                f"plms needs equal strides, which the spacing {self.spacing} does not give. Leave "
                "the spacing out, or choose another sampler."
            )

    def timesteps(self, schedule: Schedule) -> Times:
        """Return the timesteps at which the sampler calls the network, noise first."""
        if self.times is not None:
            return custom_timesteps(schedule, self.times)
        if self.shift is not None:
            schedule = with_shift(schedule, self.shift)
        return find_spacing(self.spacing)(schedule, self.steps)

    def network_calls(self, task: Task = TEXT_TO_IMAGE) -> int:
        """Return the number of network calls per image; a guided pair is one call."""
        steps = count_steps(self.steps if self.times is None else len(self.times), task.strength)
        if steps == 0:
            return 0
        if self.sampler == "plms":  # a mean of two in the first step
            return steps + (steps > 1)
        per_step = CALLS_PER_STEP.get(self.sampler, 1) * task.repeats_per_step()
        return (steps - 1) * per_step + 1

    def sampler_options(self, draw_noise: DrawNoise) -> dict[str, Any]:
        """Return the keyword arguments of the sampler: only those that it has and that are set."""
        options: dict[str, Any] = {"eta": self.eta, "order": self.order}
        accepted = inspect.signature(find_sampler(self.sampler)).parameters
        if "draw_noise" in accepted:
            options["draw_noise"] = draw_noise
        return {name: value for name, value in options.items() if value is not None}


def sample_latents(
    requests: Sequence[Request],
    callback: Callable[[Latents], None] | None = None,
    *,
    denoiser: Denoiser,
    shape: tuple[int, int, int],
    sampling: Sampling,
    device: torch.device,
    task: Task = TEXT_TO_IMAGE,
    weak: Denoiser | None = None,
) -> Latents:
    """Draw latents of this shape for requests of one kind, in one batch.

    Matrix kernels round differently for different batch sizes, but alike for every place in the
    batch. So whoever wants the same bits fills every batch up to one size.

    Args:
        callback: called with the estimate of the clean latents after each call of the network.
        weak: a weaker model that guidance moves away from, in place of the negative prompt.

    Raises:
        NotFiniteError: the result is not finite.
    """
    schedule, noise = denoiser.schedule, make_noise(requests, shape, device)
    guided = GuidedDenoiser(
        with_task_inputs(denoiser, task, noise),
        join_conditionings([request.conds for request in requests]),
        concatenate([request.uncond for request in requests]),
        sampling.guidance,
        None if weak is None else with_task_inputs(weak, task, noise),
        constrain=clipped(task.constrain, sampling.clip_range),
        callback=callback,
    )
    times = last_times(sampling.timesteps(schedule), task.strength)
    latents = task.initial_latents(noise.initial(), schedule, times)
    if len(times):
        sampler = task.find_sampler(sampling.sampler, noise)
        options = sampling.sampler_options(noise.between)
        latents = sampler(guided, latents, NoiseLevels(schedule, times), **options)
    if not latents.isfinite().all():
        raise NotFiniteError(
            f"sampling with {sampling} gave values that are not finite. Check the weights, or "
            "lower the guidance scale."
        )
    return latents


def clipped(
    constrain: Callable[[Latents], Latents], bound: float | None
) -> Callable[[Latents], Latents]:
    """Return `constrain`, with estimates clipped to a range before, or as it is without a range.

    Ho et al. 2020 clip to the range of pixels. Where alpha is nearly 0, this bounds the estimate of
    a network that predicts the noise, which is divided by alpha. diffusers' clip_sample_range.
    """
    if bound is None:
        return constrain
    return lambda z_0: constrain(z_0.clamp(-bound, bound))


def join_conditionings(
    conds: Sequence[Sequence[tuple[Conditioning, float]]],
) -> list[tuple[Conditioning, float]]:
    """Turn prompts and weights per image into one conditioning per prompt, with all images."""
    joined: list[tuple[Conditioning, float]] = []
    for prompt in zip(*conds, strict=True):
        weight = prompt[0][1]  # the same for all images of a batch
        joined.append((concatenate([conditioning for conditioning, _ in prompt]), weight))
    return joined


def with_task_inputs(denoiser: Denoiser, task: Task, noise: SeededNoise) -> Denoiser:
    """Return the denoiser of a network that gets the inputs of the task, too."""

    def bind_network(conditionings: Sequence[Conditioning]) -> BoundNetwork:
        return task.add_inputs(denoiser.bind_network(conditionings), noise)

    return Denoiser(denoiser.network, denoiser.schedule, denoiser.prediction, bind_network)
