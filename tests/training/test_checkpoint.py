"""The training state on disk: round trips, full disks, states of other objects."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from foundation.errors import UserError
from training.checkpoint import flatten, load_state, save_state, unflatten

numbers = st.integers() | st.floats(allow_nan=False) | st.text() | st.booleans() | st.none()
tensors = st.lists(st.floats(width=32, allow_nan=False), max_size=3).map(torch.tensor)
names = st.text(max_size=5).filter(lambda name: name not in ("tensor", "int_keys"))
trees = st.recursive(
    numbers | tensors,
    lambda branch: (
        st.lists(branch, max_size=3)
        | st.dictionaries(names, branch, max_size=3)
        | st.dictionaries(st.integers(), branch, max_size=3)
    ),
    max_leaves=10,
)


def equal(a, b) -> bool:
    """Compare nested values; those with tensors in them cannot be compared by ==."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b and type(a) is type(b)


@given(trees)
def test_a_nested_state_survives_the_round_trip_through_json(tree):
    found: dict[str, torch.Tensor] = {}
    text = json.dumps(flatten({"state": tree}, found))
    assert equal(unflatten(json.loads(text), found), {"state": tree})


def test_tensors_are_named_by_their_path():
    """These names are in the files of runs begun before."""
    found: dict[str, torch.Tensor] = {}
    tree = flatten({"groups": [{"lr": 0.1}], "state": {3: {"x": torch.ones(1)}}}, found)
    assert list(found) == ["/state/3/x"]
    assert tree["state"] == {"int_keys": {"3": {"x": {"tensor": "/state/3/x"}}}}


def test_a_full_disk_leaves_the_last_state_alone(tmp_path, monkeypatch):
    model = nn.Linear(2, 2)
    save_state(tmp_path, 1, {"model": model})

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("training.checkpoint.save_file", full)
    with pytest.raises(OSError, match="No space left"):
        save_state(tmp_path, 2, {"model": model})
    assert [path.name for path in tmp_path.iterdir()] == ["step-0000001"]
    assert load_state(tmp_path / "step-0000001", {"model": nn.Linear(2, 2)}) == 1


def test_states_of_other_objects_are_refused(tmp_path):
    folder = save_state(tmp_path, 1, {"model": nn.Linear(2, 2)})
    with pytest.raises(UserError, match=r"step-0000001.*model.*network"):
        load_state(folder, {"network": nn.Linear(2, 2)})


def test_weights_of_other_shapes_are_refused(tmp_path):
    folder = save_state(tmp_path, 1, {"model": nn.Linear(2, 2)})
    with pytest.raises(UserError, match="step-0000001"):
        load_state(folder, {"model": nn.Linear(2, 3)})


def test_a_damaged_file_is_refused(tmp_path):
    folder = save_state(tmp_path, 1, {"model": nn.Linear(2, 2)})
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(UserError, match="step-0000001"):
        load_state(folder, {"model": nn.Linear(2, 2)})


def test_files_of_equal_shape_that_were_exchanged_are_noticed(tmp_path):
    parts = {"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)}
    folder = save_state(tmp_path, 1, parts)
    a, b = folder / "a.safetensors", folder / "b.safetensors"
    a_bytes, b_bytes = a.read_bytes(), b.read_bytes()
    a.write_bytes(b_bytes), b.write_bytes(a_bytes)
    with pytest.raises(UserError, match=r"step-0000001.*[ab]\.safetensors.*sha256"):
        load_state(folder, parts)
    a.write_bytes(a_bytes), b.write_bytes(b_bytes)
    (folder / "more.json").write_text("{}")
    with pytest.raises(UserError, match=r"more\.json"):
        load_state(folder, parts)


def test_states_without_checksums_still_resume(tmp_path):
    folder = save_state(tmp_path, 1, {"model": nn.Linear(2, 2)})
    (folder / "state.json").write_text('{"step": 1, "parts": ["model"]}')
    assert load_state(folder, {"model": nn.Linear(2, 2)}) == 1


def test_the_step_must_be_that_of_the_name(tmp_path):
    folder = save_state(tmp_path, 1, {"model": nn.Linear(2, 2)})
    (folder / "state.json").write_text('{"step": 1000000000, "parts": ["model"]}')
    with pytest.raises(UserError, match=r"step-0000001.*1000000000"):
        load_state(folder, {"model": nn.Linear(2, 2)})
