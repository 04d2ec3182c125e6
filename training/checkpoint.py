"""Training state on disk: tensors as safetensors, everything else as JSON, never a pickle.

Each object of the state becomes one `.safetensors` file and one `.json` file. The JSON holds the
nested state dict; where that holds a tensor, the JSON says {"tensor": name}. A state is written
into a hidden folder next to its place, and renamed when it is complete and on the disk. So a state
that is there is whole, whatever was killed, and even if the power failed. Of sharded weights each
rank writes its pieces, into a folder of safetensors files that any number of ranks can read.
"""

import json
import re
import shutil
import warnings
from collections.abc import Iterator, Mapping, Set
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from foundation import collectives
from foundation.errors import FileInUseError, UserError, listed
from foundation.files import put_in_place, read_json, read_text, remove_folder, sync_names
from foundation.hashing import file_sha256
from foundation.json_reading import from_json, load_json
from foundation.ranks import is_initialized
from foundation.system import patiently
from training.distributed import is_sharded, shard_like

# torch.distributed.checkpoint takes a second to import. Only sharded states need it, so it is
# imported inside the functions that read and write those.

TENSOR = "tensor"  # the JSON key that stands for a tensor of the safetensors file
STATE = "state.json"  # step, names of the parts, and sha256 of every other file
STEP = re.compile(r"step-\d{7,18}")
# What reading other people's tensors and trees can raise; load_state_dict is PyTorch's.
DAMAGE = (
    *(ValueError, OSError, SafetensorError, LookupError, RuntimeError),
    *(TypeError, AttributeError, AssertionError),
)
KEPT_STATES = 2  # while another one is written, there is one more
INT_KEYS = "int_keys"  # JSON keys are strings; optimizers number their parameters


@dataclass(frozen=True, kw_only=True)
class SavedState:
    """The content of state.json."""

    step: int
    parts: tuple[str, ...]
    sha256: dict[str, str] | None = None


@runtime_checkable
class Stateful(Protocol):
    """An object whose state is saved and restored, such as a module."""

    def state_dict(self) -> Any: ...

    def load_state_dict(self, state: Any, /) -> Any: ...


# Saving -------------------------------------------------------------------------------------------


def save_state(
    states: Path, step: int, objects: Mapping[str, Stateful], keep: int = KEPT_STATES
) -> Path:
    """Write the state of some objects as the folder `states/step-XXXXXXX`, and return its path.

    Call it on every rank, with the same names; rank 0 alone writes what is not sharded.

    Args:
        objects: file name without suffix -> object.
        keep: how many states to keep; older ones are removed.

    Raises:
        OSError, SafetensorError: the disk is full, gone, or cannot be written; earlier states are
            untouched.
    """
    folder = state_folder(states, step)
    partial = folder.with_name(f".{folder.name}.partial")
    if not collectives.rank():
        make_partial_folder(states, partial)
    collectives.barrier()
    try:
        for name, each in objects.items():
            tensors: dict[str, Tensor] = {}
            tree = flatten(each.state_dict(), tensors)
            write_tensors(tensors, partial / name)
            if not collectives.rank():
                (partial / f"{name}.json").write_text(json.dumps(tree), encoding="ascii")
        if not collectives.rank():
            hashes = {name: file_sha256(partial / name) for name in files_of(partial)}
            about = {"step": step, "parts": list(objects), "sha256": hashes}
            (partial / STATE).write_text(json.dumps(about), encoding="ascii")
            put_in_place(partial, folder)
    finally:
        if not collectives.rank():
            shutil.rmtree(partial, ignore_errors=True)
    if not collectives.rank():
        for old in saved_states(states)[:-keep]:
            remove_state(old)
    collectives.barrier()  # if a rank ended now, torchrun would end the one that still writes
    return folder


def files_of(folder: Path) -> list[str]:
    """List the files of a state, but not the one that lists them."""
    files = (file for file in folder.rglob("*") if file.is_file())
    names = sorted(file.relative_to(folder).as_posix() for file in files)
    return [name for name in names if name != STATE]


def state_folder(states: Path, step: int) -> Path:
    """Return where the state of this step lies."""
    return states / f"step-{step:07d}"


def saved_states(states: Path) -> list[Path]:
    """List the complete states, oldest first."""
    found = [folder for folder in states.glob("step-*") if STEP.fullmatch(folder.name)]
    return sorted(found, key=step_of)


def step_of(folder: Path) -> int:
    """Return the step in the name of a state's folder."""
    return int(folder.name.removeprefix("step-"))


def make_partial_folder(states: Path, partial: Path) -> None:
    """Make the folder that a state is written into."""
    if not states.is_dir():
        states.mkdir()  # but not its parents, which may have vanished with their disk
        sync_names(states.parent)
    remove_leftovers(states)
    partial.mkdir()


def remove_state(folder: Path) -> None:
    """Remove a state; one that Windows does not let go of is left to the next save."""
    try:
        remove_folder(folder)
    except FileInUseError as error:
        print(f"note: {folder} is kept until the next save: {error}")


def remove_leftovers(states: Path) -> None:
    """Remove what a process left that was killed while it wrote or removed a state."""
    for leftover in states.glob(".*.partial"):
        patiently(shutil.rmtree, leftover)


# Loading ------------------------------------------------------------------------------------------


def load_state(folder: Path, objects: Mapping[str, Stateful]) -> int:
    """Load the state of every object, and return its step.

    Raises:
        UserError: a file is damaged, or the state is one of other objects or shapes.
    """
    try:
        state = from_json(SavedState, read_json(folder / STATE), folder / STATE)
        check_state(folder, state, set(objects))
        for name, each in objects.items():
            tree = load_json(read_text(folder / f"{name}.json"), not_finite=True)
            current: dict[str, Tensor] = {}
            flatten(each.state_dict(), current)
            each.load_state_dict(unflatten(tree, read_tensors(folder / name, current)))
    except DAMAGE as error:
        raise UserError(
            f"the run cannot go on from {folder}: {error}. Either a file is damaged: delete that "
            "folder, and the run goes on from the state before it, or from the start if there is "
            "none. Or it was written with other settings: use those, or another --out."
        ) from error
    return state.step


def check_state(folder: Path, state: SavedState, parts: set[str]) -> None:
    """Refuse a state of other objects, of another step, or with files that were exchanged.

    States written before checksums were recorded have none.
    """
    if set(state.parts) != parts:
        raise UserError(
            f"it holds the state of {listed(sorted(state.parts))}, and this run needs that of "
            f"{listed(sorted(parts))}"
        )
    if STEP.fullmatch(folder.name) and state.step != step_of(folder):
        raise UserError(
            f"{STATE} in it says step {state.step}, and its name step {step_of(folder)}"
        )
    if state.sha256 is None or collectives.rank():
        return
    files = set(files_of(folder))
    if files != state.sha256.keys():
        raise UserError(f"these files differ: {listed(sorted(files ^ state.sha256.keys()))}")
    for name, sha256 in state.sha256.items():
        if file_sha256(folder / name) != sha256:
            raise UserError(f"{name} in it is not the file that was saved (its sha256 differs)")


# Nested state dicts -------------------------------------------------------------------------------


def flatten(tree: Any, tensors: dict[str, Tensor], path: str = "") -> Any:
    """Move the tensors of a nested dict or list into `tensors`; return the rest, fit for JSON."""
    if isinstance(tree, Tensor):
        tensors[path] = tree.detach()
        return {TENSOR: path}
    if isinstance(tree, dict):
        items = {str(k): flatten(v, tensors, f"{path}/{k}") for k, v in tree.items()}
        return {INT_KEYS: items} if any(isinstance(key, int) for key in tree) else items
    if isinstance(tree, list | tuple):
        return [flatten(value, tensors, f"{path}/{i}") for i, value in enumerate(tree)]
    return tree


def unflatten(tree: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Undo `flatten`; tuples come back as lists."""
    if isinstance(tree, list):
        return [unflatten(value, tensors) for value in tree]
    if not isinstance(tree, dict):
        return tree
    if tree.keys() == {TENSOR}:
        return tensors[tree[TENSOR]]
    if tree.keys() == {INT_KEYS}:
        return {int(key): unflatten(value, tensors) for key, value in tree[INT_KEYS].items()}
    return {key: unflatten(value, tensors) for key, value in tree.items()}


# Files of tensors, whole or sharded ---------------------------------------------------------------


def write_tensors(tensors: Mapping[str, Tensor], place: Path) -> None:
    """Write the file `place.safetensors`, or a folder `place` if any tensor is sharded.

    Call it on every rank, with the same names. Rank 0 alone writes the file; every rank writes its
    pieces into the folder.
    """
    if any(map(is_sharded, tensors.values())):
        from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
        from torch.distributed.checkpoint.state_dict_saver import save

        writer = HuggingFaceStorageWriter(str(place), save_distributed=True)
        with unwrapped_errors():
            save(dict(tensors), storage_writer=writer)
    elif not collectives.rank():
        # clone: safetensors refuses tensors that share memory, and a view would drag its storage
        copies = {name: tensor.cpu().clone().contiguous() for name, tensor in tensors.items()}
        save_file(copies, safetensors_file(place))


def read_tensors(place: Path, current: dict[str, Tensor]) -> dict[str, Tensor]:
    """Read what `write_tensors` wrote, by name.

    current: the tensors that will be replaced. If these, or those that were written, are sharded,
        they are overwritten here, each rank's piece with its own; else they are not used.
    """
    if place.is_dir():
        read_sharded(place, current)
        return current
    # Copied, because an optimizer keeps what it gets, and Windows replaces no file that is mapped.
    tensors = {name: tensor.clone() for name, tensor in load_file(safetensors_file(place)).items()}
    if not any(map(is_sharded, current.values())):
        return tensors
    check_names(tensors.keys(), current.keys())
    for name, piece in current.items():
        piece.copy_(shard_like(piece, tensors[name].to(piece.device)))
    return current


def read_sharded(place: Path, current: dict[str, Tensor]) -> None:
    """Overwrite tensors with those in a folder that several ranks wrote."""
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.state_dict_loader import load

    reader = HuggingFaceStorageReader(str(place))
    check_names(reader.read_metadata().state_dict_metadata.keys(), current.keys())
    with unwrapped_errors(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")  # intended on one rank
        load(current, storage_reader=reader, no_dist=not is_initialized())


def check_names(saved: Set[str], needed: Set[str]) -> None:
    """Refuse tensors of other names than the needed ones."""
    if saved != needed:
        differing = ", ".join(sorted(saved ^ needed)[:3])
        raise UserError(f"it does not hold the tensors of this run; it differs in {differing}")


def safetensors_file(place: Path) -> Path:
    return place.with_name(f"{place.name}.safetensors")


@contextmanager
def unwrapped_errors() -> Iterator[None]:
    """Raise an error of a rank as it was, where torch.distributed.checkpoint wraps it."""
    from torch.distributed.checkpoint.api import CheckpointException

    try:
        yield
    except CheckpointException as error:
        cause, _ = next(iter(error.failures.values()))
        raise cause from error
