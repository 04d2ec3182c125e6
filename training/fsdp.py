"""Weights, gradients and optimizer state spread over the ranks, for networks too large for one GPU.

FSDP2 (`fully_shard`): each rank keeps a piece of every weight, and gets the whole of a block when
it computes it. Training and averaged weights are then DTensors, which this file writes and reads:
as safetensors, to which each rank adds its pieces, and which any number of ranks can read.
"""

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, distribute_tensor

from foundation import collectives
from foundation.errors import UserError


def shard(
    module: nn.Module,
    blocks: Sequence[nn.Module],
    dtype: torch.dtype = torch.float32,
    methods: Iterable[str] = (),
) -> None:
    """Spreads a module over the ranks, in place; its optimizer must be made after that.

    Args:
        blocks: parts of it whose weights are brought together at once.
        methods: of the blocks, which need their weights, too, when they are called from outside.
        dtype: in which weights are sent around and computed with; what is kept, and the sum of the
            gradients, are float32.
    """
    from torch.distributed.fsdp import (
        MixedPrecisionPolicy,
        fully_shard,
        register_fsdp_forward_method,
    )

    if not collectives.is_initialized():
        raise UserError(
            "--shard spreads a network over processes: start them with torchrun, such as torchrun "
            "--nproc-per-node 8 train_ldm.py --shard ..."
        )
    mesh = init_device_mesh(next(module.parameters()).device.type, (collectives.world_size(),))
    policy = MixedPrecisionPolicy(
        param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False
    )
    for part in (*blocks, module):
        # Also the outermost: after a look without a backward pass it would stay together.
        fully_shard(part, mesh=mesh, mp_policy=policy, reshard_after_forward=True)
    for block in blocks:
        for method in methods:
            register_fsdp_forward_method(block, method)


def local(tensor: Tensor) -> Tensor:
    """This rank's piece of a tensor; the tensor itself if it is not spread."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """All of it, on every rank."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def is_spread(tensors: Mapping[str, Tensor]) -> bool:
    return any(isinstance(tensor, DTensor) for tensor in tensors.values())


def write_tensors(tensors: dict[str, Tensor], place: Path) -> None:
    """As `place.safetensors` by rank 0, or into a folder `place` by all ranks if they are spread.

    To be called on every rank, with the same names.
    """
    if is_spread(tensors):
        writer = dcp.HuggingFaceStorageWriter(str(place), save_distributed=True)
        with plain_errors():
            dcp.save(tensors, storage_writer=writer)
    elif not collectives.rank():
        # clone: safetensors refuses tensors that share memory, and a view would drag its storage
        copies = {name: tensor.cpu().clone().contiguous() for name, tensor in tensors.items()}
        save_file(copies, file_of(place))


def read_tensors(place: Path, places: dict[str, Tensor]) -> dict[str, Tensor]:
    """What `write_tensors` wrote, spread or not, by name.

    places: tensors that are overwritten, each with its own piece, if either these or those that
        were written are spread. Else only what was written counts.
    """
    if not place.is_dir():
        tensors = load_file(file_of(place))
        if not is_spread(places):
            return tensors
        check_names(tensors.keys(), places.keys())
        for name, piece in places.items():
            piece.copy_(like(piece, tensors[name].to(piece.device)))
        return places
    reader = dcp.HuggingFaceStorageReader(str(place))
    check_names(reader.read_metadata().state_dict_metadata.keys(), places.keys())
    with plain_errors(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")  # one rank, as said
        dcp.load(places, storage_reader=reader, no_dist=not collectives.is_initialized())
    return places


def like(piece: Tensor, tensor: Tensor) -> Tensor:
    """A whole tensor, spread as this one is."""
    if not isinstance(piece, DTensor):
        return tensor
    return distribute_tensor(tensor, piece.device_mesh, piece.placements, src_data_rank=None)


def check_names(found: Set[str], wanted: Set[str]) -> None:
    if found != wanted:
        other = ", ".join(sorted(found ^ wanted)[:3])
        raise UserError(f"it does not hold the tensors of this run (first differences: {other})")


def file_of(place: Path) -> Path:
    return place.with_name(f"{place.name}.safetensors")


@contextmanager
def plain_errors() -> Iterator[None]:
    """The library wraps what went wrong on a rank; this gives it as it was."""
    try:
        yield
    except dcp.api.CheckpointException as error:
        cause, _ = next(iter(error.failures.values()))
        raise cause from error
