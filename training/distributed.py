"""The processes of one training: which one this is, and what all of them do together.

torchrun starts them and tells each its place through the environment. Without torchrun there is
one, and everything here does next to nothing.

Of a batch, rank r of n has the images r, r + n, r + 2n, ...; of what is measured, it has the r-th
of n consecutive parts.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from training.watchdog import SILENCE_AFTER_LOSS, Here, Watch, connection_lost

NEVER = timedelta(days=365)  # a collective has no timeout of its own: Watch ends what hangs


def rank() -> int:
    return dist.get_rank() if started() else 0


def count() -> int:
    return dist.get_world_size() if started() else 1


def started() -> bool:
    return dist.is_available() and dist.is_initialized()


def local_rank() -> int:
    """The place among the processes of this machine, and so the number of this one's GPU."""
    return int(os.environ.get("LOCAL_RANK", 0))


@contextmanager
def joined() -> Iterator[Watch]:
    """Within it, this process is one of those that torchrun has started, if it has.

    To stdout only rank 0 prints: what the others write there is dropped. If one of them ends with
    an error or dies, all of them end, and one names it and what it was doing.
    """
    if "WORLD_SIZE" not in os.environ:
        yield Watch(0, 1)
        return
    dist.init_process_group(timeout=NEVER)  # gloo for tensors in memory, NCCL for those on GPUs
    watch = Watch(rank(), count())
    try:
        with silenced() if rank() else nullcontext():
            yield watch
    except Exception as error:
        if count() > 1:
            watch.await_verdict(SILENCE_AFTER_LOSS if connection_lost(error) else 0)
            watch.failed(f"{type(error).__name__}: {error}")
            print(f"rank {rank()} of {count()}, in {Here.sign}, fails:", file=sys.stderr)
        raise
    else:
        watch.stop()
        dist.destroy_process_group()
    finally:  # after an error others may be missing, and taking leave of them would wait for them
        watch.stop()


@contextmanager
def silenced() -> Iterator[None]:
    with open(os.devnull, "w") as nothing, redirect_stdout(nothing):
        yield


@contextmanager
def first() -> Iterator[None]:
    """Rank 0 goes in alone; the others follow when it is out, and find what it has made."""
    if rank():
        meet()
    yield
    if not rank():
        meet()


def meet() -> None:
    """Waits until every rank is here."""
    any_of(False)


def any_of(mine: bool) -> bool:
    """Whether it is true on any rank."""
    if count() == 1:
        return mine
    flags = torch.tensor(int(mine))
    dist.all_reduce(flags, dist.ReduceOp.MAX)
    return bool(flags)


def mean(tensor: Tensor) -> Tensor:
    """Over the ranks: of means over equal shares of a batch, the mean over the batch."""
    if count() == 1:
        return tensor
    total = tensor.detach().clone()
    dist.all_reduce(total)
    return total / count()


def means(metrics: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same of 0-dim tensors with the same names everywhere, all at once."""
    if count() == 1 or not metrics:
        return metrics
    values = mean(torch.stack([value.detach().double() for value in metrics.values()]))
    return dict(zip(metrics, values, strict=True))


def check_share(batch_size: int, parts: int = 1) -> None:
    """Refuses a batch that does not divide evenly among the ranks, and there into `parts`."""
    unit = count() * parts
    if batch_size % unit:
        raise ValueError(
            f"a batch of {batch_size} does not divide among {count()} processes"
            + (f" and there into {parts} parts" if parts > 1 else "")
            + f". --batch-size counts the images of all of them together; let it be a multiple of "
            f"{unit}, for example {max(1, round(batch_size / unit)) * unit}."
        )


def share(first: int, batch_size: int) -> range:
    """Of `batch_size` things numbered from `first` on, those that are this rank's."""
    return range(first + rank(), first + batch_size, count())


def places(total: int) -> Tensor:
    """Which of `total` things this rank measures, equally many on every rank.

    Where they do not divide evenly the last one is repeated, and `gathered` drops it again:
    networks whose weights are spread over the ranks must be called equally often everywhere.
    """
    if not total:
        return torch.arange(0)
    each = -(-total // count())
    return torch.arange(rank() * each, (rank() + 1) * each).clamp(max=total - 1)


def gathered(rows: Tensor, total: int) -> Tensor:
    """The results of all ranks for their `places(total)`, in order, on every rank."""
    if count() == 1:
        return rows
    rows = rows.contiguous()
    parts = [torch.empty_like(rows) for _ in range(count())]
    dist.all_gather(parts, rows)
    return torch.cat(parts)[:total]


def parallel(module: nn.Module) -> nn.Module:
    """The module as its losses must call it, so that every rank gets the gradient of all.

    Gradients are averaged while the backward pass goes on. Weights, names and state are those of
    the module itself, which begins as it is on rank 0.
    """
    if count() == 1:
        return module
    return DistributedDataParallel(module, gradient_as_bucket_view=True)


@contextmanager
def averaging(module: nn.Module, now: bool) -> Iterator[None]:
    """Gradients of a backward pass in it are summed up here, and averaged over the ranks only if
    `now`: in the last part of a batch."""
    waits = isinstance(module, DistributedDataParallel) and not now
    with module.no_sync() if waits else nullcontext():
        yield
