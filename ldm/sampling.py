"""From prompts' contexts to latents: sampler, times, guidance and seeds put together."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from jaxtyping import Float
from torch import Tensor

from ldm.denoiser import Denoiser
from ldm.guidance import Guidance, guide
from ldm.noise import SeededNoise
from ldm.samplers import CALLS_PER_STEP, find_sampler
from ldm.schedule import Schedule, check_steps
from ldm.shapes import Denoise, Latents
from ldm.spacing import Times, find_spacing, listed

CPU_GROUP_PIXELS = 1024  # latent pixels that keep two CPU cores busy


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How latents are drawn. All but the prompts, the seeds and the size."""

    sampler: str = "dpmpp_2m"
    steps: int = 25
    spacing: str = "trailing"  # of the times: a name of ldm.spacing.SPACINGS
    times: tuple[float, ...] | None = None  # the times themselves, in place of steps and spacing
    eta: float | None = None  # share of fresh noise, for samplers that leave a choice
    order: int | None = None  # of unipc
    guidance: Guidance = field(default_factory=Guidance)

    def __post_init__(self):
        find_spacing(self.spacing)
        check_steps(self.steps)
        if self.eta is not None and not 0 <= self.eta <= 1:
            raise ValueError(f"eta is {self.eta:g}; it must be from 0 to 1.")
        taken = inspect.signature(find_sampler(self.sampler)).parameters
        for name in ("eta", "order"):
            if getattr(self, name) is not None and name not in taken:
                raise ValueError(f"the sampler {self.sampler} has no {name}; leave it out.")

    def along(self, schedule: Schedule) -> Times:
        """The times at which the network is called."""
        if self.times is not None:
            return listed(schedule, self.times)
        return find_spacing(self.spacing)(schedule, self.steps)

    def calls(self) -> int:
        """Of the network, per image; counting a guided pair, which is one call, as one."""
        steps = self.steps if self.times is None else len(self.times)
        if self.sampler == "plms":  # a mean of two in the first step
            return steps + (steps > 1)
        return (steps - 1) * CALLS_PER_STEP.get(self.sampler, 1) + 1

    def options(self) -> dict[str, float]:
        """What the sampler is told besides; only what was asked for."""
        named = {"eta": self.eta, "order": self.order}
        return {name: value for name, value in named.items() if value is not None}


def draw_latents(
    denoiser: Denoiser,
    cond: Float[Tensor, "b l d"],
    uncond: Float[Tensor, "1 l d"],
    shape: tuple[int, int, int],
    sampling: Sampling,
    *,
    seeds: Sequence[int],
    group: int,
    weak: Denoiser | None = None,
    progress: Callable[[int], None] | None = None,
) -> Latents:
    """Latents of this shape for the given contexts, one seed each; computed in a batch of `group`.

    Matrix kernels round differently for different batch sizes, but alike for every place in the
    batch. So the batch is filled up with copies of its last image, which are thrown away.

    Args:
        weak: a worse model that guidance leads away from, in place of `uncond`.
        progress: called with the number of images after each evaluation of the network.

    Raises:
        FloatingPointError: the result is not finite.
    """
    count = len(cond)
    rows = [min(k, count - 1) for k in range(group)]
    device = cond.device
    noise = SeededNoise(shape, seeds, device)
    guided = guide(
        denoiser, [(cond[rows], 1.0)], uncond.expand(group, -1, -1), sampling.guidance, weak
    )
    schedule = denoiser.schedule
    latents = find_sampler(sampling.sampler)(
        counted(guided, count, progress),
        noise.initial()[rows],
        schedule,
        sampling.along(schedule),
        lambda a, b: noise.between(a, b)[rows],
        **sampling.options(),
    )
    if not latents.isfinite().all():
        raise FloatingPointError(
            f"sampling with {sampling} gave values that are not finite. Check the weights, or "
            "lower the guidance scale."
        )
    return latents[:count]


def counted(denoise: Denoise, images: int, progress: Callable[[int], None] | None) -> Denoise:
    """The same, telling of every call."""

    def call(z_t: Latents, t: Tensor) -> Latents:
        z_0 = denoise(z_t, t)
        if progress is not None:
            progress(images)
        return z_0

    return call


def cpu_group(shape: tuple[int, int, int]) -> int:
    """Images per batch on a CPU: a power of two that depends on nothing but the picture's size."""
    pixels = shape[1] * shape[2]
    return min(8, 2 ** (max(1, CPU_GROUP_PIXELS // pixels).bit_length() - 1))
