"""Training a CLIP: the contrastive loss, also over several processes, and moved images.

The loss compares all pairs of a batch, and the image tower normalizes over the batch. So where
several processes have an equal part of a batch each, both work on the whole batch.
"""

import math
from typing import Any, cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Int, UInt8
from torch import Tensor, nn

from conditioning.clip import Clip, Embeddings
from foundation.ranks import rank, world_size
from foundation.shapes import Features, Scalar

MAX_LOGIT_SCALE = 100.0  # Radford et al. 2021: with larger ones training is unstable


# The loss -----------------------------------------------------------------------------------------


class ContrastiveLoss(nn.Module):
    """The loss of CLIP: each image has to find its text among all of the batch, and the reverse.

    It is the mean cross entropy of both directions: log(batch size) when nothing has been learned.

    Where processes share a batch, each returns the loss of its own pairs among those of all. The
    mean over the processes, of losses and of gradients, is that of the whole batch. All processes
    must have equally many pairs.
    """

    def __init__(self, clip: Clip):
        super().__init__()
        self.clip = clip
        if world_size() > 1:
            convert_sync_batch_norm(clip)

    def forward(self, images: UInt8[Tensor, "b 3 h w"], ids: Int[Tensor, "b tokens"]) -> Scalar:
        image_features = self.clip.image_features(images)
        text_features = self.clip.text_features(ids)
        with torch.autocast(images.device.type, enabled=False):  # small differences of large logits
            return contrastive_loss(image_features, text_features, self.clip.logit_scale)


def contrastive_loss(images: Embeddings, texts: Embeddings, logit_scale: Scalar) -> Scalar:
    """Compute the cross entropy of these pairs among the pairs of all processes."""
    own = rank() * len(images) + torch.arange(len(images), device=images.device)
    to_texts = logit_scale * images @ gather(texts).flatten(0, 1).T
    to_images = logit_scale * texts @ gather(images).flatten(0, 1).T
    return (F.cross_entropy(to_texts, own) + F.cross_entropy(to_images, own)) / 2


def parameter_groups(clip: Clip, weight_decay: float) -> list[dict[str, Any]]:
    """Divide the parameters into a group with weight decay and one without.

    Only matrices decay: no norms, biases and temperature, and no embeddings, because most of their
    rows get no gradient in a step and would shrink to nothing.
    """
    decay: list[nn.Parameter] = []
    no_decay: list[nn.Parameter] = []
    for name, weight in clip.named_parameters():
        group = no_decay if weight.ndim < 2 or "embedding" in name else decay
        group.append(weight)
    return [
        {"params": decay, "weight_decay": weight_decay},
        {"params": no_decay, "weight_decay": 0.0},
    ]


@torch.no_grad()
def clamp_logit_scale(clip: Clip) -> None:
    """Limit the logit scale to 1 to 100; to be called after each optimizer step."""
    clip.log_logit_scale.clamp_(0, math.log(MAX_LOGIT_SCALE))


# The whole batch of several processes -------------------------------------------------------------


class Gather(torch.autograd.Function):
    """All-gather with gradient: each part gets the sum of the gradients of all processes."""

    @staticmethod
    def forward(ctx: Any, part: Tensor) -> Tensor:
        parts = [torch.empty_like(part) for _ in range(world_size())]
        dist.all_gather(parts, part.contiguous())
        return torch.stack(parts)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:
        gradient = grad_outputs[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(gradient)
        return gradient[rank()]


def gather(part: Tensor) -> Tensor:
    """Stack the tensors of all processes, differentiably: (processes, *part.shape)."""
    if world_size() == 1:
        return part[None]
    return cast(Tensor, Gather.apply(part))


class SyncBatchNorm2d(nn.BatchNorm2d):
    """Batch norm over the batches of all processes.

    Mean and variance of the whole batch are computed from those of its parts, and gradients flow
    through all of them. PyTorch's own SyncBatchNorm does the same, but only on GPUs.
    """

    def forward(self, input: Features) -> Features:
        if not self.training:
            return super().forward(input)
        values = input.to(torch.promote_types(input.dtype, torch.float32))
        variances, means = torch.var_mean(values, dim=(0, 2, 3), correction=0)
        parts = gather(torch.stack([means, variances]))  # (processes, 2, c)
        means, variances = parts.unbind(dim=1)
        mean = means.mean(dim=0)
        variance = (variances + (means - mean).square()).mean(dim=0)
        self._update_running(mean.detach(), variance.detach(), len(parts) * values[:, 0].numel())
        scale = self.weight * (variance + self.eps).rsqrt()
        shift = self.bias - mean * scale
        return (values * scale[:, None, None] + shift[:, None, None]).to(input.dtype)

    @torch.no_grad()
    def _update_running(self, mean: Tensor, variance: Tensor, count: int) -> None:
        """Update the running statistics.

        count: values per channel, by which the variance becomes an unbiased one.
        """
        momentum = self.momentum
        assert self.running_mean is not None and self.running_var is not None
        assert self.num_batches_tracked is not None and momentum is not None
        self.num_batches_tracked += 1
        self.running_mean.lerp_(mean, momentum)
        self.running_var.lerp_(variance * (count / (count - 1)), momentum)


def convert_sync_batch_norm(module: nn.Module) -> None:
    """Replace every BatchNorm2d inside a module by one over the batches of all processes.

    The new layers have the same parameters and buffers, so an optimizer that has them, and the keys
    of the state_dict, stay valid. In evaluation mode nothing changes.
    """
    for name, child in module.named_children():
        if type(child) is nn.BatchNorm2d:
            setattr(module, name, sync_batch_norm(child))
        else:
            convert_sync_batch_norm(child)


def sync_batch_norm(layer: nn.BatchNorm2d) -> SyncBatchNorm2d:
    """Return a synchronized batch norm with the parameters and buffers of an ordinary one."""
    sync = SyncBatchNorm2d(layer.num_features, layer.eps, layer.momentum, device="meta")
    sync.weight, sync.bias = layer.weight, layer.bias
    sync.running_mean, sync.running_var = layer.running_mean, layer.running_var
    sync.num_batches_tracked = layer.num_batches_tracked
    return sync.train(layer.training)


# Images -------------------------------------------------------------------------------------------


def shift_images(
    images: UInt8[Tensor, "b c h w"], offsets: Int[Tensor, "b 2"], largest: int
) -> UInt8[Tensor, "b c h w"]:
    """Move each image by whole pixels; its border is repeated, and nothing is resampled.

    A CLIP that measures samples should not depend on where exactly a sample draws a thing.

    offsets: down and to the right, from -largest to largest, on the CPU.
    """
    height, width = images.shape[-2:]
    padded = F.pad(images.float(), [largest] * 4, mode="replicate").to(images.dtype)
    moved = [
        image.narrow(1, int(top), height).narrow(2, int(left), width)
        for image, (top, left) in zip(padded, largest - offsets, strict=True)
    ]
    return torch.stack(moved)
