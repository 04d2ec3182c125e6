"""From prompts' contexts to latents: sampler, times, guidance, seeds and task put together."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from foundation.errors import NotFiniteError, UserError
from foundation.shapes import Denoise, Latents
from ldm.denoiser import Denoiser
from ldm.guidance import Guidance, guide
from ldm.pipeline.batching import Request, noise_of
from ldm.samplers import CALLS_PER_STEP, find_sampler
from ldm.samplers.noise import SeededNoise
from ldm.samplers.unipc import ORDERS
from ldm.schedule import Schedule, check_steps
from ldm.tasks.base import TEXT_TO_IMAGE, Task, last, steps_taken
from ldm.timesteps import UNEVEN_SPACINGS, Times, custom_timesteps, find_spacing, with_shift


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How latents are drawn. All but the prompts, the seeds and the size."""

    sampler: str = "dpmpp_2m"
    steps: int = 25
    spacing: str = "trailing"  # of the times: a name of ldm.timesteps.SPACINGS
    times: tuple[float, ...] | None = None  # the times themselves, in place of steps and spacing
    shift: float | None = (
        None  # of a flow, in place of the model's own: above 1, more at high noise
    )
    eta: float | None = None  # share of fresh noise, for samplers that leave a choice
    order: int | None = None  # of unipc
    guidance: Guidance = field(default_factory=Guidance)

    def __post_init__(self):
        find_spacing(self.spacing)
        check_steps(self.steps)
        if self.eta is not None and not 0 <= self.eta <= 1:
            raise UserError(f"eta is {self.eta:g}; it must be from 0 to 1.")
        taken = inspect.signature(find_sampler(self.sampler)).parameters
        for name in ("eta", "order"):
            if getattr(self, name) is not None and name not in taken:
                raise UserError(f"the sampler {self.sampler} has no {name}; leave it out.")
        if self.shift is not None and not self.shift > 0:
            raise UserError(f"shift is {self.shift:g}; it must be above 0, and 1 is none.")
        if self.shift is not None and (self.spacing != "trailing" or self.times is not None):
            raise UserError("a shift moves the times of the spacing trailing, and of no other.")
        if self.order not in (None, *ORDERS):
            raise UserError(f"unipc has order {', '.join(map(str, ORDERS))}, not {self.order}.")
        if self.sampler == "plms" and self.spacing in UNEVEN_SPACINGS:
            raise UserError(
                f"plms takes equal strides for granted, so it goes with no spacing "
                f"{self.spacing}. Leave the spacing out, or choose another sampler."
            )

    def along(self, schedule: Schedule) -> Times:
        """The times at which the network is called."""
        if self.times is not None:
            return custom_timesteps(schedule, self.times)
        if self.shift is not None:
            schedule = with_shift(schedule, self.shift)
        return find_spacing(self.spacing)(schedule, self.steps)

    def calls(self, task: Task = TEXT_TO_IMAGE) -> int:
        """Of the network, per image; counting a guided pair, which is one call, as one."""
        steps = steps_taken(self.steps if self.times is None else len(self.times), task.strength)
        if steps == 0:
            return 0
        if self.sampler == "plms":  # a mean of two in the first step
            return steps + (steps > 1)
        per_step = CALLS_PER_STEP.get(self.sampler, 1) * task.rounds()
        return (steps - 1) * per_step + 1

    def options(self) -> dict[str, float]:
        """What the sampler is told besides; only what was asked for."""
        named = {"eta": self.eta, "order": self.order}
        return {name: value for name, value in named.items() if value is not None}


def draw_latents(
    denoiser: Denoiser,
    requests: Sequence[Request],
    shape: tuple[int, int, int],
    sampling: Sampling,
    *,
    task: Task = TEXT_TO_IMAGE,
    weak: Denoiser | None = None,
    watch: Callable[[Latents], None] | None = None,
) -> Latents:
    """Latents of this shape for requests of one kind, in one batch.

    Matrix kernels round differently for different batch sizes, but alike for every place in the
    batch. So whoever wants the same bits fills every batch up to one size.

    Args:
        task: what is drawn besides the prompts.
        weak: a worse model that guidance leads away from, in place of the negative prompt.
        watch: is shown the estimate of the clean latents after each call of the network.

    Raises:
        FloatingPointError: the result is not finite.
    """
    schedule, noise = denoiser.schedule, noise_of(requests, shape, requests[0].uncond.device)
    conds = [
        (torch.cat([context for context, _ in part]), part[0][1])
        for part in zip(*(request.conds for request in requests), strict=True)
    ]
    guided = guide(
        told(denoiser, task, noise),
        conds,
        torch.cat([request.uncond for request in requests]),
        sampling.guidance,
        None if weak is None else told(weak, task, noise),
    )
    times = last(sampling.along(schedule), task.strength)
    latents = task.start(noise.initial(), schedule, times)
    if len(times):
        latents = task.sampler(sampling.sampler, noise)(
            watched(task.bind(guided), watch),
            latents,
            schedule,
            times,
            noise.between,
            **sampling.options(),
        )
    if not latents.isfinite().all():
        raise NotFiniteError(
            f"sampling with {sampling} gave values that are not finite. Check the weights, or "
            "lower the guidance scale."
        )
    return latents


def told(denoiser: Denoiser, task: Task, noise: SeededNoise) -> Denoiser:
    network = task.network(denoiser.network, noise)
    if network is denoiser.network:
        return denoiser
    return Denoiser(network, denoiser.schedule, denoiser.prediction, denoiser.prepare)


def watched(denoise: Denoise, watch: Callable[[Latents], None] | None) -> Denoise:
    """The same, showing what every call gives."""
    if watch is None:
        return denoise

    def call(z_t: Latents, t: Tensor) -> Latents:
        z_0 = denoise(z_t, t)
        watch(z_0)
        return z_0

    return call
