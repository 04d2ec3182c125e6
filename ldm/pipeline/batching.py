"""Pictures to be drawn: many in a batch, and each as if it were the only one."""

import sys
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from foundation.errors import UserError
from foundation.shapes import Latents
from ldm.denoiser import Conditioning
from ldm.samplers.noise import InterpolatedNoise, SeededNoise

CPU_BATCH_PIXELS = 1024  # latent pixels that keep two CPU cores busy
# What PyTorch says in a RuntimeError when memory ran out, on CPUs and on Apple's GPUs.
OUT_OF_MEMORY = ("can't allocate memory", "not enough memory", "out of memory")


@dataclass(frozen=True)
class Request:
    """One picture to draw: what it is conditioned on, and where its noise comes from."""

    conds: Sequence[tuple[Conditioning, float]]  # one row each, and their weights
    uncond: Conditioning  # what guidance moves away from
    seed: int
    # A second seed, and the share (0 to 1) by which the noise is interpolated towards it.
    towards: tuple[int, float] = (0, 0.0)

    @property
    def kind(self) -> tuple[object, ...]:
        """Equal for pictures that can be drawn in one batch."""
        conditionings = [conditioning for conditioning, _ in self.conds] + [self.uncond]
        texts = [None if c.text is None else tuple(c.text.shape) for c in conditionings]
        return tuple(weight for _, weight in self.conds), tuple(texts)


def interpolate(a: Request, b: Request, share: float) -> Request:
    """Interpolate between two pictures; share 0 is a, 1 is b.

    Raises:
        UserError: their prompts have different numbers of parts, weights or lengths.
    """
    if a.kind != b.kind:
        raise UserError(
            "two prompts that are read in different ways cannot be interpolated: both must have as "
            "many parts, of the same weights and lengths."
        )
    conds: list[tuple[Conditioning, float]] = []
    for (x, weight), (y, _) in zip(a.conds, b.conds, strict=True):
        if x.labels is None or y.labels is None or torch.equal(x.labels, y.labels) or share == 0:
            conds.append((mix(x, y, share), weight))
        elif share == 1:
            conds.append((y, weight))
        else:  # two classes have none between them, so both are composed, as by AND
            conds += [(x, (1 - share) * weight), (y, share * weight)]
    return Request(conds, mix(a.uncond, b.uncond, share), a.seed, (b.seed, share))


def mix(a: Conditioning, b: Conditioning, share: float) -> Conditioning:
    """Interpolate texts linearly; without texts it is that of a."""
    if a.text is not None and b.text is not None:
        return Conditioning(text=torch.lerp(a.text, b.text, share))
    return a


def make_batches(requests: Sequence[Request], size: int) -> list[list[int]]:
    """Group the indices of requests of one kind into batches of at most `size`, in their order."""
    kinds: dict[tuple[object, ...], list[int]] = {}
    for k, request in enumerate(requests):
        kinds.setdefault(request.kind, []).append(k)
    return [
        indices[i : i + size] for indices in kinds.values() for i in range(0, len(indices), size)
    ]


def make_noise(
    requests: Sequence[Request], shape: tuple[int, int, int], device: torch.device
) -> SeededNoise:
    """Make the noise of a batch: that of each image's seed, or between two seeds."""
    noise = SeededNoise(shape, [request.seed for request in requests], device)
    shares = [request.towards[1] for request in requests]
    if not any(shares):
        return noise
    end = SeededNoise(shape, [request.towards[0] for request in requests], device)
    return InterpolatedNoise(noise, end, shares)


def draw_in_batches(
    draw: Callable[[list[Request], Callable[[Latents], None]], Latents],
    requests: Sequence[Request],
    size: int,
    fill: bool,
    progress: Callable[[int], object] | None = None,
    preview: Callable[[list[int], Latents], None] | None = None,
) -> list[Float[Tensor, "1 c h w"]]:
    """Draw the latents of each request, in their order.

    Args:
        draw: called with the requests of a batch, and with a callback for each estimate of the
            clean latents; returns the latents.
        size: that of a batch; halved for those that the memory of an accelerator is too small for.
        fill: fill every batch up to this size with copies that are thrown away.
        progress: called with the number of pictures after each call of the network.
        preview: called then with the pictures' indices and the estimates of their latents.

    Raises:
        UserError: the memory is too small for a single picture, or for a filled batch.
    """
    drawn: dict[int, Tensor] = {}
    waiting = make_batches(requests, size)[::-1]
    while waiting:
        indices = waiting.pop()

        def report(z_0: Latents, indices: list[int] = indices) -> None:
            if progress is not None:
                progress(len(indices))
            if preview is not None:
                preview(indices, z_0[: len(indices)])

        batch = [requests[k] for k in indices]
        if fill:
            batch += [batch[-1]] * (size - len(batch))
        try:
            latents = draw(batch, report)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            half = len(indices) // 2
            if half == 0 or fill:  # a batch that is filled up again is no smaller
                raise too_large(size if fill else 1) from error
            say(f"the memory does not suffice for {len(indices)} pictures at once; now {half}.")
            waiting += [indices[half:], indices[:half]]
            continue
        for row, k in enumerate(indices):
            drawn[k] = latents[row : row + 1]
    return [drawn[k] for k in range(len(requests))]


def is_out_of_memory(error: RuntimeError) -> bool:
    """Return whether an error of PyTorch means that memory ran out."""
    return isinstance(error, torch.OutOfMemoryError) or any(
        message in str(error) for message in OUT_OF_MEMORY
    )


@contextmanager
def show_progress(
    progress: bool | Callable[[int], object], total: int
) -> Generator[Callable[[int], object] | None]:
    """Yield the function that counts calls of the network; a progress bar's, if it is True.

    The bar is shown where somebody watches: in terminals and notebooks.

    total: number of calls, over all pictures.
    """
    if not isinstance(progress, bool):
        yield progress
        return
    watched = sys.stderr.isatty() or "ipykernel" in sys.modules
    with tqdm(
        total=total, desc="drawing", unit=" image steps", disable=not (progress and watched)
    ) as bar:
        yield bar.update


def say(text: str) -> None:
    print(f"note: {text}", file=sys.stderr)


def too_large(count: int) -> UserError:
    """Make the error for pictures that memory does not suffice for."""
    advice = "Draw a smaller one, or use windows of the size that the model was trained on."
    if count == 1:
        return UserError(f"the memory does not suffice for one picture of this size. {advice}")
    return UserError(
        f"the memory does not suffice for {count} pictures of this size, which is how many are "
        f"drawn at once; use a batch size of 1. {advice}"
    )


def cpu_batch_size(shape: tuple[int, int, int]) -> int:
    """Return the default batch size on a CPU: a power of two that depends on the size alone."""
    pixels = shape[1] * shape[2]
    return min(8, 2 ** (max(1, CPU_BATCH_PIXELS // pixels).bit_length() - 1))
