"""Training state on disk: tensors as safetensors, everything else as JSON, never a pickle.

A nested state dict becomes one `.safetensors` file and one `.json` file. The JSON holds the tree;
where the tree holds a tensor, the JSON says {"tensor": name}. A state is written into a hidden
folder beside its place and renamed when it is complete and on the disk, so a state that is there is
a whole one, whatever was killed, and even if the power failed. Of weights that are spread over the
ranks each rank writes its pieces, into a folder of such files (training/sharding.py).
"""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from foundation import collectives
from foundation.errors import UserError
from foundation.files import put_in_place, remove_folder, sync_names
from training.fsdp import read_tensors, write_tensors

TENSOR = "tensor"  # the JSON key that stands for a tensor of the safetensors file
INT_KEYS = "int_keys"  # JSON keys are strings; optimizers number their parameters


def flatten(tree: Any, tensors: dict[str, torch.Tensor], path: str = "") -> Any:
    """Moves the tensors of a nested dict or list into `tensors`; returns the rest, fit for JSON."""
    if isinstance(tree, torch.Tensor):
        tensors[path] = tree.detach()
        return {TENSOR: path}
    if isinstance(tree, dict):
        items = {str(k): flatten(v, tensors, f"{path}/{k}") for k, v in tree.items()}
        return {INT_KEYS: items} if any(isinstance(key, int) for key in tree) else items
    if isinstance(tree, list | tuple):
        return [flatten(value, tensors, f"{path}/{i}") for i, value in enumerate(tree)]
    return tree


def unflatten(tree: Any, tensors: dict[str, torch.Tensor]) -> Any:
    """Inverse of `flatten` (tuples come back as lists)."""
    if isinstance(tree, list):
        return [unflatten(value, tensors) for value in tree]
    if not isinstance(tree, dict):
        return tree
    if tree.keys() == {TENSOR}:
        return tensors[tree[TENSOR]]
    if tree.keys() == {INT_KEYS}:
        return {int(key): unflatten(value, tensors) for key, value in tree[INT_KEYS].items()}
    return {key: unflatten(value, tensors) for key, value in tree.items()}


def state_folder(states: Path, step: int) -> Path:
    return states / f"step-{step:07d}"


def save_state(states: Path, step: int, parts: dict[str, Any], keep: int = 2) -> Path:
    """Writes `parts` (name -> object with `state_dict`) as `states/step-XXXXXXX`; called by all
    ranks, of which rank 0 writes what is not spread.

    Raises:
        OSError, SafetensorError: the disk is full, gone, or cannot be written; earlier states are
            untouched.
    """
    folder = state_folder(states, step)
    partial = folder.with_name(f".{folder.name}.partial")
    if not collectives.rank():
        begin(states, partial)
    collectives.barrier()
    try:
        for name, part in parts.items():
            tensors: dict[str, torch.Tensor] = {}
            tree = flatten(part.state_dict(), tensors)
            write_tensors(tensors, partial / name)
            if not collectives.rank():
                (partial / f"{name}.json").write_text(json.dumps(tree))
        if not collectives.rank():
            (partial / "state.json").write_text(json.dumps({"step": step, "parts": list(parts)}))
            put_in_place(partial, folder)
    finally:
        if not collectives.rank():
            shutil.rmtree(partial, ignore_errors=True)
    if not collectives.rank():
        for old in saved_states(states)[:-keep]:
            remove_folder(old)
    collectives.barrier()  # a rank that ended now would have torchrun end the one that writes
    return folder


def begin(states: Path, partial: Path) -> None:
    """Makes the folder that a state is written into."""
    if not states.is_dir():
        states.mkdir()  # but not its parents, which a vanished disk may have taken along
        sync_names(states.parent)
    remove_leftovers(states)
    partial.mkdir()


def remove_leftovers(states: Path) -> None:
    """Of a save that was killed while it wrote, or while it removed an old state."""
    for left in states.glob(".*"):
        shutil.rmtree(left)


def saved_states(states: Path) -> list[Path]:
    """Complete states, oldest first."""
    return sorted(states.glob("step-*"))


def load_state(folder: Path, parts: dict[str, Any]) -> int:
    """Loads every part and returns the step; the part names must be those that were saved."""
    try:
        state = json.loads((folder / "state.json").read_text())
        if set(state["parts"]) != set(parts):
            raise UserError(
                f"it holds the parts {sorted(state['parts'])}, this run has {sorted(parts)}"
            )
        for name, part in parts.items():
            tree = json.loads((folder / f"{name}.json").read_text())
            places: dict[str, torch.Tensor] = {}
            flatten(part.state_dict(), places)
            part.load_state_dict(unflatten(tree, read_tensors(folder / name, places)))
    except (ValueError, OSError, SafetensorError, KeyError, RuntimeError) as error:
        raise UserError(
            f"the run cannot go on from {folder}: {error}. Either a file is damaged: delete that "
            "folder, and the run goes on from the state before it, or from the start if there is "
            "none. Or it was written with other settings: use those, or another --out."
        ) from error
    return state["step"]
