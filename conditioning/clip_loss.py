"""Training a CLIP: its loss, what decays, and pictures made worse on purpose."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from conditioning.clip import Clip, Embeddings
from conditioning.distributed_batch import gather, normalize_together
from foundation.collectives import rank, world_size

LARGEST_LOGIT_SCALE = 100.0  # Radford et al. 2021: more makes the training unstable
LARGEST_SHIFT = 2  # pixels


class ContrastiveLoss(nn.Module):
    """The loss of CLIP: each image is to find its text among the batch's, and the reverse.

    Cross entropy, mean of both directions; log(batch size) when nothing has been learned.

    Where processes share a batch, each gives the loss of its own pairs among those of all; the mean
    over the processes, of losses and of gradients, is that of the batch. The processes must have
    equally many pairs.
    """

    def __init__(self, clip: Clip):
        super().__init__()
        self.clip = clip
        if world_size() > 1:
            normalize_together(clip)

    def forward(
        self, images: UInt8[Tensor, "b 3 h w"], ids: Int[Tensor, "b tokens"]
    ) -> Float[Tensor, ""]:
        image_features = self.clip.image_features(images)
        text_features = self.clip.text_features(ids)
        with torch.autocast(images.device.type, enabled=False):  # small differences of large logits
            return contrast(image_features, text_features, self.clip.logit_scale)


def contrast(
    images: Embeddings, texts: Embeddings, logit_scale: Float[Tensor, ""]
) -> Float[Tensor, ""]:
    """Cross entropy of these pairs among the pairs of all processes."""
    number = rank()
    own = number * len(images) + torch.arange(len(images), device=images.device)
    to_texts = logit_scale * images @ gather(texts).flatten(0, 1).T
    to_images = logit_scale * texts @ gather(images).flatten(0, 1).T
    return (F.cross_entropy(to_texts, own) + F.cross_entropy(to_images, own)) / 2


def parameter_groups(clip: Clip, weight_decay: float) -> list[dict]:
    """Weight decay for matrices alone: not for norms, biases, the temperature, nor for embeddings,
    most of whose rows get no gradient and would shrink to nothing."""
    decayed, kept = [], []
    for name, weight in clip.named_parameters():
        (kept if weight.ndim < 2 or "embedding" in name else decayed).append(weight)
    return [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": kept, "weight_decay": 0.0},
    ]


@torch.no_grad()
def bound_logit_scale(clip: Clip) -> None:
    """After each optimizer step."""
    clip.network.logit_scale.clamp_(0, math.log(LARGEST_LOGIT_SCALE))


def degraded(
    images: UInt8[Tensor, "b c h w"], generator: torch.Generator, count: int
) -> UInt8[Tensor, "b c h w"]:
    """The same pictures, the first `count` of them shifted a little and resampled through fewer
    pixels, down to half the size.

    For a CLIP that is to judge samples: they are softer than what it was trained on, or smaller,
    and it should look for the thing and not for the sharpness of its edges.
    """
    size = images.shape[-1]
    fewer = int(torch.randint(size // 2, size + 1, (), generator=generator))
    left, top = torch.randint(2 * LARGEST_SHIFT + 1, (2,), generator=generator).tolist()
    pixels = F.pad(images[:count].float(), [LARGEST_SHIFT] * 4, mode="replicate")
    pixels = pixels[..., top : top + size, left : left + size]
    pixels = F.interpolate(pixels, (fewer, fewer), mode="bicubic", antialias=True)
    pixels = F.interpolate(pixels, (size, size), mode="bicubic", antialias=True)
    return torch.cat([pixels.round().clamp(0, 255).to(torch.uint8), images[count:]])
