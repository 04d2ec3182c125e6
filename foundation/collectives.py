"""Operations over all ranks of a distributed training; which rank this is: foundation/ranks.py.

Without torchrun there is one process, and the functions here return their input.

Rank r of n works on the images r, r + n, r + 2n, ... of a batch (`rank_share`). Of the rows of an
evaluation it works on the r-th of n consecutive blocks (`rank_rows`).
"""

from collections.abc import Generator, Mapping
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor

from foundation.normalization import at_least_float32
from foundation.ranks import rank, world_size


def barrier() -> None:
    """Wait until every rank has called this."""
    any_rank(False)


@contextmanager
def rank_zero_first() -> Generator[None, None, None]:
    """Context manager: rank 0 runs the block first, the other ranks after it, on its results."""
    if rank():
        barrier()
    yield
    if not rank():
        barrier()


def any_rank(condition: bool) -> bool:
    """Return whether the condition is true on at least one rank."""
    if world_size() == 1:
        return condition
    flag = torch.tensor(int(condition))
    dist.all_reduce(flag, dist.ReduceOp.MAX)
    return bool(flag)


def sum_ranks(tensor: Tensor) -> Tensor:
    """Sum a tensor over the ranks."""
    if world_size() == 1:
        return tensor
    total = tensor.detach().clone()
    dist.all_reduce(total)
    return total


def mean(tensor: Tensor) -> Tensor:
    """Average a tensor over the ranks.

    If every rank has the mean over an equal share of the batch, this is the mean over the batch.
    """
    return tensor if world_size() == 1 else sum_ranks(tensor) / world_size()


def mean_metrics(metrics: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Average 0-dim tensors over the ranks, in one message; every rank must have the same names."""
    if world_size() == 1 or not metrics:
        return dict(metrics)
    values = mean(torch.stack([at_least_float32(value.detach()) for value in metrics.values()]))
    return dict(zip(metrics, values, strict=True))


def rank_share(first: int, batch_size: int) -> range:
    """Return this rank's image numbers, of the batch `first` ... `first + batch_size - 1`."""
    return range(first + rank(), first + batch_size, world_size())


def rank_rows(total: int) -> Tensor:
    """Return the indices of the rows that this rank computes, equally many on every rank.

    Where `total` is not a multiple of the number of ranks, the last row is repeated, and
    `gather_rows` drops the copies: networks with sharded weights must be called equally often on
    every rank.
    """
    if not total:
        return torch.arange(0)
    each = -(-total // world_size())  # rounded up
    return torch.arange(rank() * each, (rank() + 1) * each).clamp(max=total - 1)


def gather_rows(rows: Tensor, total: int) -> Tensor:
    """Collect the rows that the ranks computed for `rank_rows(total)`, in order, on every rank."""
    if world_size() == 1:
        return rows
    rows = rows.contiguous()
    blocks = [torch.empty_like(rows) for _ in range(world_size())]
    dist.all_gather(blocks, rows)
    return torch.cat(blocks)[:total]
