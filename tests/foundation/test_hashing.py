"""Hashes and derived seeds. The golden values must never change: recorded runs depend on them."""

import hashlib

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from foundation.hashing import file_sha256, generator, generators, tensors_sha256
from foundation.seeds import derived_seed, seed_from

TENSORS = {
    "b.weight": torch.arange(24.0).view(2, 3, 4) / 8,  # exact in float16
    "a.bias": torch.tensor([0.5, -1.0]),
    "empty": torch.zeros(0, 3),
    "scalar": torch.tensor(2.0),
}
GOLDEN_TENSORS = "418222dc21881c74d34ca43b69584dedd1f50749ef0050c827a644fab2d4108a"
GOLDEN_SEEDS = {
    (0,): 3582888934675442504,
    (0, "train", 1): 6167778989611334222,
    (7, "train", 123456): 7605595843940796868,
    (7, "preview", "red heart", 2): 5296838863059572976,
    (-1, "é"): 5284945689057351350,
}


def test_derived_seeds_never_change():
    assert {path: derived_seed(*path) for path in GOLDEN_SEEDS} == GOLDEN_SEEDS
    assert seed_from(b"latentsmith") == 5114416893973607026
    assert seed_from(b"latentsmith", "big") == 8228654684367190598


@given(st.integers(), st.lists(st.integers() | st.text()))
def test_derived_seeds_fit_every_generator(seed, path):
    assert 0 <= derived_seed(seed, *path) < 2**63


def test_a_number_and_its_text_give_different_seeds():
    assert len({derived_seed(1, "2", 3), derived_seed(1, 2, 3), derived_seed(1, "2", "3")}) == 3


def test_generators_are_seeded_by_purpose_and_number():
    first, second = generators(3, "noise", [5, 6])
    assert first.initial_seed() == derived_seed(3, "noise", 5)
    expected = torch.randn(4, generator=generator(3, "noise", 6))
    assert torch.equal(torch.randn(4, generator=second), expected)
    assert generators(3, "noise", []) == []


def test_the_hash_of_tensors_never_changes():
    assert tensors_sha256(TENSORS) == GOLDEN_TENSORS


def test_the_hash_of_tensors_does_not_depend_on_how_they_are_stored():
    reordered = dict(reversed(TENSORS.items()))
    half = {name: tensor.half() for name, tensor in TENSORS.items()}
    strided = {
        name: tensor.movedim(0, -1).contiguous().movedim(-1, 0) if tensor.ndim > 1 else tensor
        for name, tensor in TENSORS.items()
    }
    assert not strided["b.weight"].is_contiguous()
    parameters = {name: torch.nn.Parameter(tensor) for name, tensor in TENSORS.items()}
    for same in (reordered, half, strided, parameters):
        assert tensors_sha256(same) == GOLDEN_TENSORS


@pytest.mark.parametrize(
    "change",
    [
        {"a.bias": torch.tensor([0.5, -1.0001])},
        {"a.bias": torch.tensor([[0.5, -1.0]])},
        {"another": torch.zeros(0)},
    ],
    ids=["value", "shape", "name"],
)
def test_the_hash_of_tensors_depends_on_names_shapes_and_values(change):
    assert tensors_sha256(TENSORS | change) != GOLDEN_TENSORS


@given(st.binary())
def test_the_hash_of_a_file_is_that_of_its_bytes(tmp_path_factory, content):
    file = tmp_path_factory.mktemp("hash") / "file"
    file.write_bytes(content)
    assert file_sha256(file) == hashlib.sha256(content).hexdigest()
