"""Weights files and folders: what other libraries write, damage, and equal bytes."""

import json
import sys
import types
import zipfile
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from foundation.errors import MissingFileError, UserError
from interop.safetensors_io import (
    has_weights,
    read_folder,
    read_header,
    read_tensors,
    weights_file,
    write_tensors,
)
from interop.state_dict_check import check_state_dict

TENSORS = {"b": torch.arange(6.0).view(2, 3), "a": torch.ones(4), "half": torch.ones(3).half()}


@pytest.fixture
def file(tmp_path) -> Path:
    write_tensors(tmp_path / "model.safetensors", TENSORS, {"format": "pt"})
    return tmp_path / "model.safetensors"


def equal(found: dict, expected: dict) -> bool:
    return found.keys() == expected.keys() and all(
        found[key].dtype == value.dtype and torch.equal(found[key], value)
        for key, value in expected.items()
    )


# Writing


def test_equal_input_gives_equal_bytes(tmp_path):
    metadata = {f"key {k}": f'"{k}" é 😀 \\ \x00\x1f\x7f\n\t/' for k in range(20)}
    contents = set()
    for _ in range(3):
        write_tensors(tmp_path / "x.safetensors", TENSORS, metadata)
        contents.add((tmp_path / "x.safetensors").read_bytes())
        metadata = dict(reversed(metadata.items()))
    assert len(contents) == 1
    assert equal(read_tensors(tmp_path / "x.safetensors"), TENSORS)
    with safe_open(tmp_path / "x.safetensors", framework="pt") as stored:
        assert stored.metadata() == metadata
    save_file(TENSORS, tmp_path / "theirs.safetensors", metadata=metadata)
    assert (tmp_path / "theirs.safetensors").stat().st_size == len(contents.pop())


texts = st.text(max_size=20)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.dictionaries(texts, texts), st.lists(texts.filter(lambda x: x != "__metadata__"), min_size=1)
)
def test_any_metadata_and_any_names_survive_a_round_trip(tmp_path, metadata, names):
    tensors = {name: torch.tensor([float(i)]) for i, name in enumerate(names)}
    write_tensors(tmp_path / "x.safetensors", tensors, metadata)
    shapes, read = read_header(tmp_path / "x.safetensors")
    assert read == metadata
    assert shapes == {name: (1,) for name in names}
    assert equal(read_tensors(tmp_path / "x.safetensors"), tensors)


def test_without_metadata_and_with_strided_tensors(tmp_path):
    turned = {"x": torch.arange(24.0).view(1, 2, 3, 4).to(memory_format=torch.channels_last)}
    write_tensors(tmp_path / "x.safetensors", turned, {})
    assert torch.equal(load_file(tmp_path / "x.safetensors")["x"], turned["x"])


def test_a_failed_write_leaves_the_old_file(file, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    before = file.read_bytes()
    monkeypatch.setattr("interop.safetensors_io.save_file", full)
    for target in (file, file.parent / "new" / "model.safetensors"):
        with pytest.raises(OSError, match="No space"):
            write_tensors(target, TENSORS, {})
    assert file.read_bytes() == before
    assert list(file.parent.iterdir()) == [file]


# One file


def test_headers_and_chosen_tensors(file, tmp_path):
    shapes = {"a": (4,), "b": (2, 3), "half": (3,)}
    assert read_header(file) == (shapes, {"format": "pt"})
    assert equal(read_tensors(file, lambda name: name == "b"), {"b": TENSORS["b"]})
    torch.save({"state_dict": TENSORS, "epoch": 3}, tmp_path / "model.ckpt")
    assert read_header(tmp_path / "model.ckpt") == (shapes, {})
    assert equal(read_tensors(tmp_path / "model.ckpt"), TENSORS)
    assert read_tensors(tmp_path / "model.ckpt", lambda name: name == "b").keys() == {"b"}


@pytest.mark.parametrize("archive", [True, False])
def test_pickles_of_tensors(tmp_path, archive):
    path = tmp_path / "model.pt"
    content = {"weight": nn.Parameter(torch.ones(2)), "step": 3, "nested": {"x": torch.ones(1)}}
    torch.save(content, path, _use_new_zipfile_serialization=archive)
    found = read_tensors(path)
    assert equal(found, {"weight": torch.ones(2)})
    assert not found["weight"].requires_grad


def test_checkpoints_with_a_callback_of_lightning(tmp_path, monkeypatch):
    """Its class is a key in the checkpoint; Lightning and the class are not needed."""
    module = types.ModuleType("pytorch_lightning.callbacks.model_checkpoint")
    code = {"__module__": module.__name__, "__qualname__": "ModelCheckpoint"}
    module.ModelCheckpoint = type("ModelCheckpoint", (), code)
    with monkeypatch.context() as during:
        for name in ("pytorch_lightning", "pytorch_lightning.callbacks", module.__name__):
            during.setitem(sys.modules, name, module)
        content = {"state_dict": TENSORS, "callbacks": {module.ModelCheckpoint: {"best": 0.5}}}
        torch.save(content, tmp_path / "model.ckpt")
    assert equal(read_tensors(tmp_path / "model.ckpt"), TENSORS)


class Malicious:
    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return exec, (f"open({str(self.marker)!r}, 'w')",)


@pytest.mark.parametrize("archive", [True, False])
def test_code_in_a_checkpoint_is_refused_and_not_run(tmp_path, archive):
    path, marker = tmp_path / "model.ckpt", tmp_path / "executed"
    content = {"state_dict": TENSORS, "extra": Malicious(marker)}
    torch.save(content, path, _use_new_zipfile_serialization=archive)
    with pytest.raises(UserError, match=r"model\.ckpt .*\bexec\b"):
        read_tensors(path)
    assert not marker.exists()


def test_pickles_without_named_tensors_are_described(tmp_path):
    path = tmp_path / "model.pt"
    linear = nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(linear.parameters())
    linear(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    torch.save(optimizer.state_dict(), path)
    with pytest.raises(UserError, match=r"model\.pt .*param_groups.* optimizer"):
        read_tensors(path)
    torch.save([torch.ones(1)], path)
    with pytest.raises(UserError, match=r"model\.pt .*\blist\b"):
        read_tensors(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model/constants.pkl", b"")  # what only TorchScript has
    with pytest.raises(UserError, match="TorchScript"):
        read_tensors(path)


def test_damaged_files_are_described(file):
    whole = file.read_bytes()
    damaged = {
        whole[:-5]: rf"{len(whole)} bytes .*{len(whole) - 5}",
        whole[:20]: r"header .*\d+ bytes.* 20\b",
        (10**6).to_bytes(8, "little") + whole[8:]: "header .*1000000 bytes",
        whole + b"more": "not fully covered",
        b"": "empty",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n": "Git LFS pointer",
        b"\n<!DOCTYPE html><html>": "web page",
        b"PK\x03\x04" + bytes(100): "torch.save",
        b"\xff" * 100: "header",
    }
    for content, pattern in damaged.items():
        file.write_bytes(content)
        for read in (read_tensors, read_header):
            with pytest.raises(UserError, match=rf"model\.safetensors .*{pattern}"):
                read(file)


def test_damaged_pickles_are_refused(tmp_path):
    path = tmp_path / "model.ckpt"
    torch.save(TENSORS, path)
    whole = path.read_bytes()
    flipped = whole.replace(b"ctorch._utils", b"ctorch._utilz")
    for content in (whole[:-300], whole[:100], b"", b"\x80\x02", b"not weights", flipped):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"model\.ckpt ") as error:
            read_tensors(path)
        assert "weights_only" not in str(error.value)  # torch's own advice is to run the code
    write_tensors(tmp_path / "model.safetensors", TENSORS, {})
    path.write_bytes((tmp_path / "model.safetensors").read_bytes())
    with pytest.raises(UserError, match="safetensors file"):
        read_tensors(path)


def test_other_files_are_refused(tmp_path):
    with pytest.raises(MissingFileError, match=r"nowhere\.safetensors"):
        read_tensors(tmp_path / "nowhere.safetensors")
    (tmp_path / "picture.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"picture\.png .*\.safetensors"):
        read_tensors(tmp_path / "picture.png")


# Folders


def shard(folder: Path, parts: dict[str, dict], variant: str = "") -> None:
    """parts: file name -> tensors."""
    for name, tensors in parts.items():
        save_file(tensors, folder / name)
    names = {key: name for name, tensors in parts.items() for key in tensors}
    index = folder / f"model.safetensors.index{variant}.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": names}))


FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


@pytest.fixture
def sharded(tmp_path) -> Path:
    shard(tmp_path, {FIRST: {"a": TENSORS["a"]}, SECOND: {"b": TENSORS["b"]}})
    return tmp_path


def test_plain_weights_come_before_variants(tmp_path):
    assert not has_weights(tmp_path, "model") and not has_weights(tmp_path / "nowhere", "model")
    save_file({"fp16": torch.ones(1)}, tmp_path / "model.fp16.safetensors")
    assert read_folder(tmp_path, "model").keys() == {"fp16"}
    save_file({"other": torch.ones(1)}, tmp_path / "model.non_ema.safetensors")
    with pytest.raises(UserError, match=r"\b2 .*model\.fp16\.saf.*model\.non_ema\.saf"):
        read_folder(tmp_path, "model")
    assert has_weights(tmp_path, "model") and not has_weights(tmp_path, "mode")
    parts = {FIRST: {"plain": torch.ones(1)}, SECOND: {"too": torch.ones(1)}}
    shard(tmp_path, parts)
    assert read_folder(tmp_path, "model").keys() == {"plain", "too"}
    save_file({"whole": torch.ones(1)}, tmp_path / "model.safetensors")
    assert read_folder(tmp_path, "model").keys() == {"whole"}
    assert weights_file(tmp_path, "model") == tmp_path / "model.safetensors"


def test_shards_of_a_variant(tmp_path):
    """Both ways in which diffusers has named them."""
    parts = {"model.fp16-00001-of-00002.safetensors": {"a": TENSORS["a"]}}
    parts |= {"model-00002-of-00002.fp16.safetensors": {"b": TENSORS["b"]}}
    shard(tmp_path, parts, variant=".fp16")
    assert equal(read_folder(tmp_path, "model"), {key: TENSORS[key] for key in ("a", "b")})


def test_missing_and_wrong_shards(sharded):
    index = sharded / "model.safetensors.index.json"
    assert read_folder(sharded, "model").keys() == {"a", "b"}
    save_file({"a": TENSORS["a"]}, sharded / SECOND)
    with pytest.raises(UserError, match=r"index\.json: a "):
        read_folder(sharded, "model")
    (sharded / SECOND).unlink()
    with pytest.raises(MissingFileError, match=rf"{SECOND} .*{index.name}"):
        read_folder(sharded, "model")
    wrong = ["{", "[]", "{}", '{"weight_map": {"a": "../a.safetensors"}}', '{"weight_map": "a"}']
    for content in wrong:
        index.write_text(content)
        with pytest.raises(UserError, match=index.name):
            read_folder(sharded, "model")
    index.unlink()
    with pytest.raises(MissingFileError, match=r"model\.safetensors"):
        read_folder(sharded, "model")


def test_pickles_in_folders_are_not_opened(tmp_path):
    torch.save(TENSORS, tmp_path / "pytorch_model.bin")
    with pytest.raises(MissingFileError, match=r"pytorch_model\.bin"):
        read_folder(tmp_path, "model")


# Comparison with a network


def test_all_differences_are_in_one_message():
    expected = {f"layer.{k}.weight": torch.ones(3, k + 1, device="meta") for k in range(8)}
    found = {key: torch.ones(value.shape).half() for key, value in expected.items()}
    check_state_dict(found, expected, Path("x.safetensors"), "the model")
    for k in range(5):
        del found[f"layer.{k}.weight"]
    found |= {"layer.5.weight": torch.ones(6, 3), "layer.6.weight": torch.ones(3, 7).int()}
    found |= {"to_q.lora_A.weight": torch.ones(4, 4)}
    with pytest.raises(UserError) as error:
        check_state_dict(found, expected, Path("x.safetensors"), "the model")
    for expected_text in (
        "x.safetensors does not contain the model. 8 differences",
        "5 missing: layer.0.weight (3, 1), layer.1.weight (3, 2), layer.2.weight (3, 3), ...;",
        "2 different: layer.5.weight is (6, 3), expected (3, 6), layer.6.weight is (3, 7) of "
        "torch.int32, expected (3, 7);",
        "1 unexpected: to_q.lora_A.weight (4, 4).",
        "a LoRA",
    ):
        assert expected_text in str(error.value)
