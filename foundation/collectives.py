"""Which process of a training this is, and what all of its processes (ranks) compute together.

torchrun starts the processes and tells each its place through the environment. Without torchrun
there is one process, and everything here does next to nothing.

Of a batch, rank r of n has the images r, r + n, r + 2n, ...; of what is measured, it has the r-th
of n consecutive parts.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor


def is_initialized() -> bool:
    """Return whether a process group exists, that is, whether torchrun started this process."""
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """Return the number of this process, 0 to world_size() - 1."""
    return dist.get_rank() if is_initialized() else 0


def world_size() -> int:
    """Return the number of processes."""
    return dist.get_world_size() if is_initialized() else 1


def local_rank() -> int:
    """Return the number of this process among those of its machine, which is that of its GPU."""
    return int(os.environ.get("LOCAL_RANK", 0))


def barrier() -> None:
    """Wait until every rank is here."""
    any_rank(False)


@contextmanager
def rank_zero_first() -> Iterator[None]:
    """Let rank 0 run the block alone; the others follow, and find what it has made."""
    if rank():
        barrier()
    yield
    if not rank():
        barrier()


def any_rank(condition: bool) -> bool:
    """Return whether the condition is true on any rank."""
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
    """Average a tensor over the ranks: of means over equal shares, the mean over the batch."""
    return tensor if world_size() == 1 else sum_ranks(tensor) / world_size()


def mean_metrics(metrics: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Average 0-dim tensors of the same names on every rank over the ranks, in one message."""
    if world_size() == 1 or not metrics:
        return dict(metrics)
    values = mean(torch.stack([value.detach().double() for value in metrics.values()]))
    return dict(zip(metrics, values, strict=True))


def rank_share(first: int, batch_size: int) -> range:
    """Return this rank's share of `batch_size` consecutive numbers that begin at `first`."""
    return range(first + rank(), first + batch_size, world_size())


def rank_rows(total: int) -> Tensor:
    """Return which of `total` rows this rank computes, equally many on every rank.

    Where they do not divide evenly the last row is repeated, and `gather_rows` drops it again:
    networks whose weights are spread over the ranks must be called equally often everywhere.
    """
    if not total:
        return torch.arange(0)
    each = -(-total // world_size())
    return torch.arange(rank() * each, (rank() + 1) * each).clamp(max=total - 1)


def gather_rows(rows: Tensor, total: int) -> Tensor:
    """Collect what the ranks computed for their `rank_rows(total)`, in order, on every rank."""
    if world_size() == 1:
        return rows
    rows = rows.contiguous()
    parts = [torch.empty_like(rows) for _ in range(world_size())]
    dist.all_gather(parts, rows)
    return torch.cat(parts)[:total]
