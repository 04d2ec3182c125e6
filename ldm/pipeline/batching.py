"""Pictures to be drawn: many at once, and each as if it were the only one."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from foundation.errors import UserError
from foundation.shapes import Latents
from ldm.pipeline.memory import ran_out, tell
from ldm.samplers.interpolation import NoiseBetween
from ldm.samplers.noise import SeededNoise

CPU_GROUP_PIXELS = 1024  # latent pixels that keep two CPU cores busy


@dataclass(frozen=True)
class Request:
    """One picture: what its prompt became, and where its noise comes from."""

    conds: Sequence[tuple[Float[Tensor, "1 l d"], float]]  # contexts and their weights
    uncond: Float[Tensor, "1 l d"]  # what guidance leads away from
    seed: int
    toward: tuple[int, float] = (0, 0.0)  # another seed, and how far the noise is on the way there

    @property
    def kind(self) -> tuple:
        """Pictures of one kind can be drawn in one batch."""
        contexts = [context for context, _ in self.conds] + [self.uncond]
        return tuple(w for _, w in self.conds), tuple(context.shape for context in contexts)


def between(a: Request, b: Request, share: float) -> Request:
    """On the way from one picture to another; at 0 and 1 exactly these."""
    if a.kind != b.kind:
        raise UserError(
            "there is no way between two prompts that are read in different ways: both must have "
            "as many parts, of the same weights and lengths."
        )
    conds = [
        (torch.lerp(x, y, share), weight)
        for (x, weight), (y, _) in zip(a.conds, b.conds, strict=True)
    ]
    return Request(conds, torch.lerp(a.uncond, b.uncond, share), a.seed, (b.seed, share))


def batches(requests: Sequence[Request], size: int) -> list[list[int]]:
    """The places of requests of one kind, at most `size` together, as they come."""
    kinds: dict[tuple, list[int]] = {}
    for k, request in enumerate(requests):
        kinds.setdefault(request.kind, []).append(k)
    return [places[i : i + size] for places in kinds.values() for i in range(0, len(places), size)]


def noise_of(
    requests: Sequence[Request], shape: tuple[int, int, int], device: torch.device
) -> SeededNoise:
    noise = SeededNoise(shape, [request.seed for request in requests], device)
    shares = [request.toward[1] for request in requests]
    if not any(shares):
        return noise
    there = SeededNoise(shape, [request.toward[0] for request in requests], device)
    return NoiseBetween(noise, there, shares)


def draw_in_batches(
    draw: Callable[[list[Request], Callable[[Latents], None]], Latents],
    requests: Sequence[Request],
    size: int,
    fill: bool,
    progress: Callable[[int], None] | None = None,
    preview: Callable[[list[int], Latents], None] | None = None,
) -> list[Float[Tensor, "1 c h w"]]:
    """The latents of each request, in their order.

    Args:
        draw: gives those of a batch, and shows its second argument the estimates on the way.
        size: of a batch; halved for those that an accelerator's memory does not suffice for.
        fill: every batch up to one size, with copies that are thrown away.
        progress: called with the number of pictures after each evaluation of the network.
        preview: called then with the pictures' places and the estimates of their latents.
    """
    drawn: dict[int, Tensor] = {}
    waiting = batches(requests, size)[::-1]
    while waiting:
        places = waiting.pop()

        def watch(z_0: Latents, places: list[int] = places) -> None:
            if progress is not None:
                progress(len(places))
            if preview is not None:
                preview(places, z_0[: len(places)])

        chosen = [requests[k] for k in places]
        chosen += chosen[-1:] * (size - len(chosen)) * fill
        try:
            drawn.update(zip(places, draw(chosen, watch).split(1), strict=not fill))
            continue
        except RuntimeError as error:
            if not ran_out(error):
                raise
            half = len(places) // 2
            if half == 0 or fill:  # a batch that is filled up again is no smaller
                raise UserError(too_much(size if fill else 1)) from error
        tell(f"the memory does not suffice for {len(places)} pictures at once; now {half}.")
        waiting += [places[half:], places[:half]]
    return [drawn[k] for k in range(len(requests))]


def too_much(count: int) -> str:
    smaller = "Draw a smaller one, or through windows of the size that the model was trained on."
    if count == 1:
        return f"the memory does not suffice for one picture of this size. {smaller}"
    return (
        f"the memory does not suffice for {count} pictures of this size, of which so many are "
        f"drawn at once; take a batch size of 1. {smaller}"
    )


def cpu_group(shape: tuple[int, int, int]) -> int:
    """Images per batch on a CPU, unless said otherwise: a power of two that depends on nothing but
    the picture's size."""
    pixels = shape[1] * shape[2]
    return min(8, 2 ** (max(1, CPU_GROUP_PIXELS // pixels).bit_length() - 1))
