"""What looks at a whole batch, of which several processes have an equal part each.

PyTorch's own SyncBatchNorm needs a GPU; the one here gives the same anywhere.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from foundation.collectives import rank, world_size


def normalize_together(module: nn.Module) -> None:
    """Makes every BatchNorm2d of a module, in place, one over the batches of all processes.

    Names and values of weights and buffers stay, and so does what it does in evaluation.
    """
    for each in module.modules():
        if type(each) is nn.BatchNorm2d:
            each.__class__ = BatchNormTogether


class BatchNormTogether(nn.BatchNorm2d):
    """Mean and variance of the whole batch, from those of its parts; gradients flow through all."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        values = x.to(torch.promote_types(x.dtype, torch.float32))
        variances, means = torch.var_mean(values, dim=(0, 2, 3), correction=0)
        parts = gather(torch.stack([means, variances]))  # (processes, 2, c)
        means, variances = parts.unbind(dim=1)
        mean = means.mean(dim=0)
        variance = (variances + (means - mean).square()).mean(dim=0)
        self.remember(mean.detach(), variance.detach(), len(parts) * values[:, 0].numel())
        scale = self.weight * (variance + self.eps).rsqrt()
        shift = self.bias - mean * scale
        return (values * scale[:, None, None] + shift[:, None, None]).to(x.dtype)

    @torch.no_grad()
    def remember(self, mean: Tensor, variance: Tensor, count: int) -> None:
        """count: of values per channel, for the unbiased variance that is kept."""
        self.num_batches_tracked += 1
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance * (count / (count - 1)), self.momentum)


class Gather(torch.autograd.Function):
    """The tensors of all processes, stacked. The gradient of each is the sum of what the losses of
    all processes send to it."""

    @staticmethod
    def forward(ctx: Any, part: Tensor) -> Tensor:
        number, count = rank(), world_size()
        ctx.number = number
        parts = [torch.empty_like(part) for _ in range(count)]
        dist.all_gather(parts, part.contiguous())
        return torch.stack(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(gradient)
        return gradient[ctx.number]


def gather(part: Tensor) -> Tensor:
    """(processes, *part.shape); differentiable."""
    return Gather.apply(part) if world_size() > 1 else part[None]
