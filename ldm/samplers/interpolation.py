"""Between two pictures: noise along the sphere it lies near, contexts along a straight line."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from foundation.shapes import Latents, PerSample
from ldm.samplers.noise import SeededNoise


def slerp(a: Latents, b: Latents, share: PerSample | float) -> Latents:
    """From a to b at constant angular speed, image by image; lengths change evenly.

    Shoemake 1985 (10.1145/325334.325242). A straight line would pass through noise of too small a
    deviation, of which a model makes blurred pictures.
    """
    norm_a, norm_b = (x.flatten(1).norm(dim=1) for x in (a, b))
    cosine = (a * b).flatten(1).sum(dim=1) / (norm_a * norm_b)
    angle = cosine.clamp(-1, 1).double().acos()
    sine = angle.sin()
    apart = sine > 1e-6  # else the same direction, and straight is right
    share = torch.as_tensor(share, dtype=angle.dtype, device=angle.device)
    weights = [
        torch.where(apart, (part * angle).sin() / sine.where(apart, 1.0), part)
        for part in (1 - share, share)
    ]
    of_a, of_b = (weight.to(a.dtype)[:, None, None, None] for weight in weights)
    return of_a * a + of_b * b


class NoiseBetween(SeededNoise):
    """Noise of images on the way between two seeds; at either end exactly that of the seed."""

    def __init__(self, a: SeededNoise, b: SeededNoise, shares: Sequence[float]):
        super().__init__(a.shape, a.seeds, a.device)
        self.ends, self.shares = (a, b), torch.tensor(shares, dtype=torch.float64)

    def initial(self) -> Float[Tensor, "b c h w"]:
        return slerp(*(end.initial() for end in self.ends), self.shares)

    def between(self, a: float, b: float) -> Float[Tensor, "b c h w"]:
        return slerp(*(end.between(a, b) for end in self.ends), self.shares)

    def stream(self, number: int) -> "NoiseBetween":
        return NoiseBetween(*(end.stream(number) for end in self.ends), self.shares.tolist())

    def shaped(self, shape: tuple[int, ...]) -> "NoiseBetween":
        return NoiseBetween(*(end.shaped(shape) for end in self.ends), self.shares.tolist())
