"""Noise that belongs to an image: drawn from its seed, whatever else is drawn along with it."""

import struct
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from foundation.hashing import seed_from

DEPTH = 16  # halvings of the way; what lies between is a straight line


class SeededNoise:
    """Initial noise, and noise on the way from one Brownian path, of several images.

    The noise between two angles is the increment of the path divided by the root of its length. So
    it does not depend on how many steps a sampler takes: with more of them the picture converges.

    The path is not stored. Its value at the middle of an interval is drawn, given those at its
    ends, by a generator seeded with the image's seed and the middle's place; and so on in halves.
    """

    def __init__(self, shape: tuple[int, ...], seeds: Sequence[int], device: torch.device):
        """shape: of one image's latents."""
        self.shape, self.seeds, self.device = shape, list(seeds), device
        self.known: dict[float, Float[Tensor, "b c h w"]] = {}  # of the last descent

    def initial(self) -> Float[Tensor, "b c h w"]:
        """Unit noise to start from."""
        generators = [torch.Generator().manual_seed(seed) for seed in self.seeds]
        noise = [torch.randn(self.shape, generator=generator) for generator in generators]
        return torch.stack(noise).to(self.device)

    def between(self, a: float, b: float) -> Float[Tensor, "b c h w"]:
        """Unit noise for the way from a down to b, 1 >= a > b >= 0."""
        increment = self.path_at(a) - self.path_at(b)
        return (increment / (a - b) ** 0.5).to(self.device)

    def stream(self, number: int) -> "SeededNoise":
        """Other noise of the same images, for a task that draws more than once on the same way."""
        seeds = [hashed(struct.pack("<Qq", seed, number)) for seed in self.seeds]
        return SeededNoise(self.shape, seeds, self.device)

    def shaped(self, shape: tuple[int, ...]) -> "SeededNoise":
        """Of the same images, for something of another shape."""
        return SeededNoise(shape, self.seeds, self.device)

    def path_at(self, x: float) -> Float[Tensor, "b c h w"]:
        """The Brownian path at x in [0, 1], 0 at 0."""
        low, high = 0.0, 1.0
        visited = {1.0: self.value(1.0, 0.0, 1.0)}
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
        self.known = visited  # a sampler goes down in small steps: the next descent begins alike
        return torch.lerp(at_low, at_high, (x - low) / (high - low))

    def value(self, x: float, mean: Tensor | float, std: float) -> Float[Tensor, "b c h w"]:
        """Of the path at x, given its mean and standard deviation there."""
        if x not in self.known:
            return mean + std * torch.stack([self.draw(seed, x) for seed in self.seeds])
        return self.known[x]

    def draw(self, seed: int, x: float) -> Float[Tensor, "c h w"]:
        generator = torch.Generator().manual_seed(hashed(struct.pack("<Qd", seed, x)))
        return torch.randn(self.shape, generator=generator)


def hashed(packed: bytes) -> int:
    """A seed."""
    return seed_from(packed, "big")
