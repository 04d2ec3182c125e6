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

import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from foundation.collectives import rank, world_size
from foundation.errors import UserError
from training.watchdog import SILENCE_AFTER_LOSS, Here, Watch, connection_lost

NEVER = timedelta(days=365)  # a collective has no timeout of its own: Watch ends what hangs


@contextmanager
def process_group() -> Iterator[Watch]:
    """Within it, this process is one of those that torchrun has started, if it has.

    To stdout only rank 0 prints: what the others write there is dropped. If one of them ends with
    an error or dies, all of them end, and one names it and what it was doing.
    """
    if "WORLD_SIZE" not in os.environ:
        yield Watch(0, 1)
        return
    dist.init_process_group(timeout=NEVER)  # gloo for tensors in memory, NCCL for those on GPUs
    watch = Watch(rank(), world_size())
    try:
        with silenced() if rank() else nullcontext():
            yield watch
    except Exception as error:
        if world_size() > 1:
            watch.await_verdict(SILENCE_AFTER_LOSS if connection_lost(error) else 0)
            watch.failed(f"{type(error).__name__}: {error}")
            print(f"rank {rank()} of {world_size()}, in {Here.sign}, fails:", file=sys.stderr)
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


def check_batch_size(batch_size: int, parts: int = 1) -> None:
    """Refuses a batch that does not divide evenly among the ranks, and there into `parts`."""
    unit = world_size() * parts
    if batch_size % unit:
        raise UserError(
            f"a batch of {batch_size} does not divide among {world_size()} processes"
            + (f" and there into {parts} parts" if parts > 1 else "")
            + f". --batch-size counts the images of all of them together; let it be a multiple of "
            f"{unit}, for example {max(1, round(batch_size / unit)) * unit}."
        )


def data_parallel(module: nn.Module) -> nn.Module:
    """The module as its losses must call it, so that every rank gets the gradient of all.

    Gradients are averaged while the backward pass goes on. Weights, names and state are those of
    the module itself, which begins as it is on rank 0.
    """
    if world_size() == 1:
        return module
    return DistributedDataParallel(module, gradient_as_bucket_view=True)


@contextmanager
def gradient_sync(module: nn.Module, now: bool) -> Iterator[None]:
    """Gradients of a backward pass in it are summed up here, and averaged over the ranks only if
    `now`: in the last part of a batch."""
    waits = isinstance(module, DistributedDataParallel) and not now
    with module.no_sync() if waits else nullcontext():
        yield
