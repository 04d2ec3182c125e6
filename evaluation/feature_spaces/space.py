"""What all feature spaces have in common: 8-bit images in, one vector for each out."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from foundation.errors import MissingFileError

Pictures = UInt8[Tensor, "b 3 h w"]


@dataclass(frozen=True)
class Features:
    """What a network says of a batch of images.

    logits: of the classes of Inception, for the Inception Score; None: the network has no classes.
    """

    vectors: Float[Tensor, "b d"]
    logits: Float[Tensor, "b classes"] | None = None


@dataclass(frozen=True)
class FeatureSpace:
    """A network whose features tell how alike images are.

    Args:
        name: as reports show it.
        sha256: of the file of weights.
        resize: how images are brought to the size that the network takes, in words.
        version: of the library whose code computes the features.
        run: computes the features of a batch on the device of the network.
        is_clip: the network was trained with texts, as the distance of CMMD needs.
        device: of the network.
    """

    name: str
    sha256: str
    resize: str
    version: str
    run: Callable[[Pictures], Features] = field(repr=False)
    is_clip: bool = False
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @torch.no_grad()
    def __call__(self, images: Pictures) -> Features:
        """Return the features in float32, on the CPU."""
        found = self.run(images.to(self.device))
        vectors = found.vectors.flatten(1).float().cpu()
        return Features(vectors, None if found.logits is None else found.logits.float().cpu())

    def describe(self) -> dict[str, Any]:
        """Return as JSON all that the features depend on besides the images."""
        return {
            "name": self.name,
            "sha256": self.sha256,
            "resize": self.resize,
            "version": self.version,
        }


class MissingWeights(MissingFileError):
    """The weights of a feature space are not on this machine; the message says what to fetch."""


def bicubic(images: Pictures, size: int) -> Float[Tensor, "b 3 size size"]:
    """Resize to 0 ... 255 with PyTorch's antialiased bicubic filter; equal sizes stay."""
    pixels = images.float()
    if images.shape[-2:] == (size, size):
        return pixels
    return F.interpolate(pixels, (size, size), mode="bicubic", antialias=True).clamp(0, 255)
