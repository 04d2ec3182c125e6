"""Noise that belongs to an image: drawn from its seed, whatever else is drawn in the same batch."""

import struct
from collections.abc import Sequence
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor

from foundation.seeds import seed_from
from foundation.shapes import Latents, PerSample

DEPTH = 16  # halvings of the interval; inside the smallest ones the path is a straight line


class SeededNoise:
    """Initial noise, and the noise of each step from one Brownian path, for several images.

    The noise between two angles is the increment of the path divided by the root of its length. So
    it does not depend on how many steps a sampler takes: with more of them the picture converges.

    The path is not stored. Its value at the middle of an interval is drawn, given those at its
    ends, by a generator seeded with the image's seed and the position of the middle; and so on in
    halves.
    """

    def __init__(self, shape: tuple[int, ...], seeds: Sequence[int], device: torch.device):
        """shape: that of one image's latents. seeds: one per image."""
        self.shape, self.seeds, self.device = shape, list(seeds), device
        self.last_descent: dict[float, Latents] = {}  # values of the path at the middles passed

    def initial(self) -> Latents:
        """Draw the noise that sampling starts from: what `manual_seed(seed)` gives everywhere."""
        generators = [torch.Generator().manual_seed(seed) for seed in self.seeds]
        noise = [torch.randn(self.shape, generator=generator) for generator in generators]
        return torch.stack(noise).to(self.device)

    def between(self, a: float, b: float) -> Latents:
        """Draw unit noise for the step from angle a down to angle b, 1 >= a > b >= 0."""
        increment = self.path_at(a) - self.path_at(b)
        return (increment / (a - b) ** 0.5).to(self.device)

    def stream(self, number: int) -> "SeededNoise":
        """Return other noise of the same images, for a task that draws several times in a step."""
        seeds = [seed_from(struct.pack("<Qq", seed, number), "big") for seed in self.seeds]
        return SeededNoise(self.shape, seeds, self.device)

    def with_shape(self, shape: tuple[int, ...]) -> "SeededNoise":
        """Return noise of the same seeds for something of another shape."""
        return SeededNoise(shape, self.seeds, self.device)

    def path_at(self, x: float) -> Latents:
        """Compute the Brownian path at x in [0, 1]; it is 0 at 0."""
        low, high = 0.0, 1.0
        visited = {1.0: self.value(1.0, torch.zeros(()), 1.0)}
        at_low, at_high = torch.zeros_like(visited[1.0]), visited[1.0]
        for _ in range(DEPTH):
            if x in (low, high):
                break
            middle = (low + high) / 2
            at_middle = self.value(middle, (at_low + at_high) / 2, ((high - low) / 4) ** 0.5)
            visited[middle] = at_middle
            if x < middle:
                high, at_high = middle, at_middle
            else:
                low, at_low = middle, at_middle
        self.last_descent = visited  # a sampler moves in small steps: the next descent is alike
        return torch.lerp(at_low, at_high, (x - low) / (high - low))

    def value(self, x: float, mean: Tensor, std: float) -> Latents:
        """Draw the path at x, given its mean and standard deviation there."""
        if x not in self.last_descent:
            return mean + std * torch.stack([self.draw(seed, x) for seed in self.seeds])
        return self.last_descent[x]

    def draw(self, seed: int, x: float) -> Float[Tensor, "c h w"]:
        generator = torch.Generator().manual_seed(seed_from(struct.pack("<Qd", seed, x), "big"))
        return torch.randn(self.shape, generator=generator)


class InterpolatedNoise(SeededNoise):
    """Noise between those of two seeds per image; at either end exactly that of the seed."""

    def __init__(self, a: SeededNoise, b: SeededNoise, shares: Sequence[float]):
        """shares: one per image; 0 is a, 1 is b."""
        super().__init__(a.shape, a.seeds, a.device)
        self.a, self.b = a, b
        self.shares = list(shares)

    def initial(self) -> Latents:
        return self.mix(self.a.initial(), self.b.initial())

    def between(self, a: float, b: float) -> Latents:
        return self.mix(self.a.between(a, b), self.b.between(a, b))

    def mix(self, a: Latents, b: Latents) -> Latents:
        return slerp(a, b, torch.tensor(self.shares, dtype=torch.float64))

    def stream(self, number: int) -> "InterpolatedNoise":
        a, b = self.a.stream(number), self.b.stream(number)
        return InterpolatedNoise(a, b, self.shares)

    def with_shape(self, shape: tuple[int, ...]) -> "InterpolatedNoise":
        a, b = self.a.with_shape(shape), self.b.with_shape(shape)
        return InterpolatedNoise(a, b, self.shares)


def norm(latents: Latents) -> PerSample:
    return cast(Tensor, torch.linalg.vector_norm(latents.flatten(1), dim=1))  # pyright: ignore[reportUnknownMemberType]


def slerp(a: Latents, b: Latents, share: PerSample | float) -> Latents:
    """Interpolate from a to b at constant angular speed, image by image; norms change evenly.

    share: 0 is a, 1 is b; one for all images, or one each.

    Shoemake 1985 (10.1145/325334.325242). A straight line would pass through noise of too small a
    deviation, of which a model makes blurred pictures.
    """
    cosine = (a * b).flatten(1).sum(dim=1) / (norm(a) * norm(b))
    angle = cosine.clamp(-1, 1).cpu().double().acos()  # on the CPU: MPS has no float64
    sine = angle.sin()
    differs = sine > 1e-6  # otherwise both have the same direction, and a straight line is right
    share = torch.as_tensor(share, dtype=angle.dtype, device="cpu")

    def weight(part: Tensor) -> Tensor:
        curved = (part * angle).sin() / sine.where(differs, 1.0)
        return torch.where(differs, curved, part).to(a)[:, None, None, None]

    return weight(1 - share) * a + weight(share) * b
