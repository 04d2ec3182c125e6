"""The processes of one training: joining them, and spreading gradients or weights over them.

torchrun starts the processes (ranks) and sets each one's place in the environment. Without torchrun
there is one process, and everything here does next to nothing. How ranks share out a batch is in
foundation/collectives.py.

Two ways to train on several GPUs: data parallelism (`data_parallel`: DDP, every rank holds all
weights), and fully sharded data parallelism (`shard`: FSDP2, every rank holds a piece of every
weight, for networks too large for one GPU). Sharded weights, and averages of them, are DTensors.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from foundation import collectives
from foundation.errors import UserError
from foundation.ranks import is_initialized
from training.watchdog import Watchdog, reporting_to

NO_TIMEOUT = timedelta(days=365)  # of a collective: the watchdog ends what hangs


@contextmanager
def process_group() -> Iterator[Watchdog]:
    """Join the processes that torchrun started.

    Inside, only rank 0 prints to stdout; what the others print is dropped. If one rank fails, dies
    or hangs, all of them end, and one message names it and what it was doing.
    """
    dist.init_process_group(timeout=NO_TIMEOUT)  # gloo for CPU tensors, NCCL for those on GPUs
    watchdog = Watchdog(collectives.rank(), collectives.world_size())
    try:
        with reporting_to(watchdog), silenced() if collectives.rank() else nullcontext():
            yield watchdog
    except Exception as error:
        watchdog.fail(error)
        raise
    else:
        watchdog.stop()
        dist.destroy_process_group()  # not after an error: it would wait for missing ranks
    finally:
        watchdog.stop()


@contextmanager
def silenced() -> Iterator[None]:
    """Drop what is printed to stdout."""
    with open(os.devnull, "w", encoding="utf-8") as nothing, redirect_stdout(nothing):
        yield


def check_batch_size(batch_size: int, accumulate: int = 1) -> None:
    """Refuse a batch that does not divide evenly among the ranks.

    accumulate: equal parts that each rank computes its share in, one after the other.

    Raises:
        UserError: it does not divide; names the nearest size that does.
    """
    unit = collectives.world_size() * accumulate
    if batch_size % unit:
        raise UserError(
            f"a batch of {batch_size} does not divide among {collectives.world_size()} processes"
            + (f" and there into {accumulate} parts" if accumulate > 1 else "")
            + f". --batch-size counts the images of all of them together; let it be a multiple of "
            f"{unit}, for example {max(1, round(batch_size / unit)) * unit}."
        )


# Data parallelism ---------------------------------------------------------------------------------


def data_parallel(module: nn.Module) -> nn.Module:
    """Wrap a module so that its backward pass averages gradients over the ranks (DDP).

    Compute losses through the wrapper. Weights, their names and the state are those of the module
    itself; every rank begins with the weights of rank 0.
    """
    if collectives.world_size() == 1:
        return module
    return DistributedDataParallel(module, gradient_as_bucket_view=True)


@contextmanager
def gradient_sync(module: nn.Module, now: bool) -> Iterator[None]:
    """Average gradients over the ranks in this backward pass only if `now`.

    For gradient accumulation: the passes before the last one only add up on each rank.
    """
    if isinstance(module, DistributedDataParallel) and not now:
        with module.no_sync():
            yield
    else:
        yield


# Sharded weights ----------------------------------------------------------------------------------


def shard(
    module: nn.Module,
    blocks: Sequence[nn.Module],
    dtype: torch.dtype = torch.float32,
    methods: Iterable[str] = (),
) -> None:
    """Spread the weights of a module over the ranks, in place (FSDP2).

    Make its optimizer afterwards.

    Args:
        blocks: submodules whose weights are gathered together, one block at a time.
        dtype: in which weights are sent and computed with. What each rank keeps, and the sums of
            gradients, are float32.
        methods: names of methods of the blocks, besides `forward`, that need the weights and are
            called from outside.

    Raises:
        UserError: torchrun did not start this process.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import (
        MixedPrecisionPolicy,
        fully_shard,
        register_fsdp_forward_method,
    )

    if not is_initialized():
        raise UserError(
            "--shard spreads a network over processes: start them with torchrun, such as torchrun "
            "--nproc-per-node 8 train_ldm.py --shard ..."
        )
    mesh = init_device_mesh(next(module.parameters()).device.type, (collectives.world_size(),))
    policy = MixedPrecisionPolicy(
        param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False
    )
    for submodule in (*blocks, module):
        # Also the outermost: after an evaluation, which has no backward pass, it would stay whole.
        fully_shard(submodule, mesh=mesh, mp_policy=policy, reshard_after_forward=True)
    for block in blocks:
        for method in methods:
            register_fsdp_forward_method(block, method)


def is_sharded(tensor: Tensor) -> bool:
    """Return whether each rank holds only a piece of this tensor."""
    return local_tensor(tensor) is not tensor


def local_tensor(tensor: Tensor) -> Tensor:
    """Return this rank's piece of a sharded tensor; the tensor itself if it is not sharded."""
    if not is_initialized():
        return tensor
    from torch.distributed.tensor import DTensor  # takes a second to import

    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def full_tensor(tensor: Tensor) -> Tensor:
    """Gather a sharded tensor on every rank; return the tensor itself if it is not sharded."""
    if not is_initialized():
        return tensor
    from torch.distributed.tensor import DTensor

    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def shard_like(piece: Tensor, tensor: Tensor) -> Tensor:
    """Shard a whole tensor as `piece` is sharded; return the tensor itself if that is whole."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(piece, DTensor):
        return tensor
    return distribute_tensor(tensor, piece.device_mesh, piece.placements, src_data_rank=None)
