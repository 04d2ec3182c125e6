"""Model files in which something is wrong: refused with the file's name, or read as they stand."""

import json
import shutil
import struct
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from autoencoder import Autoencoder
from conditioning import TextEncoder
from conditioning.clip import Clip
from foundation.errors import UserError
from interop.ckpt import read_pickle
from interop.safetensors_io import read_tensors
from ldm import TextToImage
from ldm.unet import UNet
from tests.hostile.json_changes import faults_of_reader, read_changed

# Part of the world -> JSON files in it, and what opens them.
PARTS: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "vae/model": (Autoencoder.load, ("config.json",)),
    "ldm/model/unet": (UNet.load, ("config.json",)),
    "clip/model": (
        TextEncoder.load,
        (
            *("text_encoder/config.json", "text_encoder/latentsmith.json"),
            *("tokenizer/tokenizer_config.json", "tokenizer/special_tokens_map.json"),
        ),
    ),
    "clip/model/clip": (Clip.load, ("open_clip_config.json",)),
    "ldm/model": (
        TextToImage.load,
        ("model_index.json", "scheduler/scheduler_config.json", "latentsmith.json"),
    ),
}
FILES = [(part, file) for part, (_, files) in PARTS.items() for file in files]
EVERY = {"ldm/model": 16, "clip/model": 12}  # loading takes longer there


@pytest.fixture(scope="module")
def models(world, tmp_path_factory):
    """A copy that may be changed, with few tokens, since most of the time went to reading these."""
    copy = Path(shutil.copytree(world, tmp_path_factory.mktemp("models") / "world"))
    for tokenizer in copy.glob("*/model/tokenizer"):
        file = tokenizer / "vocab.json"
        tokens = list(json.loads(file.read_text()).items())
        file.write_text(json.dumps(dict(tokens[:512] + tokens[-2:])))
        (tokenizer / "merges.txt").write_text("#version: 0.2\n")
    return copy


def check_json(models: Path, part: str, file: str, every: int) -> int:
    open_part = PARTS[part][0]
    path = models / part / file
    count, faults = read_changed(path, partial(open_part, models / part), str(models), every)
    assert not faults, f"{len(faults)} of {count}:\n" + "\n".join(faults[:8])
    return count


@pytest.mark.parametrize(("part", "file"), FILES)
def test_entries_of_other_types_in_some_files(models, part, file):
    check_json(models, part, file, 5 * EVERY.get(part, 4))


@pytest.mark.slow
@pytest.mark.parametrize(("part", "file"), FILES)
def test_entries_of_other_types_in_all_files(models, part, file):
    print(file, check_json(models, part, file, 1), "inputs")


# Tensors


def with_header(header: object, data: bytes = bytes(16)) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(dtype: object = "F32", shape: object = (2, 2), offsets: object = (0, 16)) -> object:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


HEADERS: dict[str, bytes] = {
    "empty": b"",
    "seven bytes": bytes(7),
    "a length of 2^63": struct.pack("<Q", 2**63) + b"{}",
    "a length of 2^64 - 1": b"\xff" * 16,
    "a length above the file": struct.pack("<Q", 90_000_000) + b"{}",
    "a length of 0": bytes(8),
    "no JSON": with_header(b"{" * 40),
    "nested deeply": with_header(b"[" * 100_000),
    "nested objects": with_header(b'{"a":' * 50_000),
    "a list": with_header([]),
    "not UTF-8": with_header(b'{"\xff": 1}'),
    "overlapping": with_header({"a": entry(), "b": entry()}),
    "beyond the end": with_header({"a": entry(offsets=(0, 1600), shape=(20, 20))}),
    "a hole": with_header({"a": entry(offsets=(8, 24))}, bytes(24)),
    "unused bytes": with_header({"a": entry()}, bytes(32)),
    "backwards": with_header({"a": entry(offsets=(16, 0))}),
    "a negative offset": with_header({"a": entry(offsets=(-16, 0))}),
    "three offsets": with_header({"a": entry(offsets=(0, 8, 16))}),
    "an unknown type": with_header({"a": entry(dtype="F99")}),
    "a number as type": with_header({"a": entry(dtype=32)}),
    "a negative shape": with_header({"a": entry(shape=(-2, -2))}),
    "a huge shape": with_header({"a": entry(shape=(2**40, 2**40))}),
    "a shape of 2^64": with_header({"a": entry(shape=(2**64,))}),
    "a shape in fractions": with_header({"a": entry(shape=(2.5, 2))}),
    "a shape as text": with_header({"a": entry(shape="22")}),
    "a shape of another size": with_header({"a": entry(shape=(3, 3))}),
    "no shape": with_header({"a": {"dtype": "F32", "data_offsets": [0, 16]}}),
    "metadata of numbers": with_header({"__metadata__": {"format": 1}, "a": entry()}),
    "metadata as a list": with_header({"__metadata__": [], "a": entry()}),
    "only metadata": with_header({"__metadata__": {"format": "pt"}}, b""),
    "no tensors": with_header({}, b""),
    "a name twice": with_header(
        b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},'
        b'"a":{"dtype":"F32","shape":[2],"data_offsets":[8,16]}}'
    ),
    "a Git LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
    "a web page": b"<!DOCTYPE html><html></html>",
    "a zip archive": b"PK\x03\x04" + bytes(60),
}


@pytest.mark.parametrize("name", HEADERS)
@pytest.mark.parametrize("load", [UNet.load, Autoencoder.load], ids=["file", "folder"])
def test_headers(models, tmp_path, name, load):
    """As a single file of a U-Net, and as the weights of an autoencoder's folder."""
    file = tmp_path / "in.safetensors"
    source = file
    if load == Autoencoder.load:
        source = Path(shutil.copytree(models / "vae" / "model", tmp_path / "vae"))
        file = source / "diffusion_pytorch_model.safetensors"
    file.write_bytes(HEADERS[name])
    assert faults_of_reader(lambda: load(source), str(file)) == ""


@pytest.mark.parametrize("name", HEADERS)
def test_headers_alone(tmp_path, name):
    file = tmp_path / "in.safetensors"
    file.write_bytes(HEADERS[name])
    assert not faults_of_reader(lambda: read_tensors(file), str(file))


@pytest.mark.parametrize(
    "value", [float("nan"), float("inf"), -float("inf")], ids=["nan", "inf", "-inf"]
)
@pytest.mark.parametrize("part", ["vae/model", "ldm/model/unet", "clip/model/text_encoder"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_weights_that_are_no_numbers(models, tmp_path, part, value, dtype):
    folder = Path(shutil.copytree(models / part, tmp_path / "part"))
    (file,) = folder.glob("*.safetensors")
    weights = {name: tensor.to(dtype) for name, tensor in load_file(file).items()}
    name = sorted(weights)[len(weights) // 2]
    weights[name].flatten()[-1:].fill_(value)
    save_file(weights, file)
    load = {"vae": Autoencoder.load, "ldm": UNet.load, "clip": TextEncoder.load}[
        part[:4].strip("/")
    ]
    with pytest.raises(UserError, match=rf"{file}: {name}"):
        load(folder)


@pytest.mark.parametrize("change", ["missing", "renamed", "added", "of another shape", "integers"])
@pytest.mark.parametrize("part", ["vae/model", "ldm/model/unet"])
def test_weights_of_another_network(models, tmp_path, part, change):
    folder = Path(shutil.copytree(models / part, tmp_path / "part"))
    (file,) = folder.glob("*.safetensors")
    weights = load_file(file)
    name = sorted(weights)[0]
    tensor = weights.pop(name)
    weights |= {
        "missing": {},
        "renamed": {"\x1b[31m" + name: tensor},
        "added": {name: tensor, "x" * 50_000: tensor.clone()},
        "of another shape": {name: tensor[..., None].clone()},
        "integers": {name: tensor.to(torch.int32)},
    }[change]
    save_file(weights, file)
    load = Autoencoder.load if part.startswith("vae") else UNet.load
    assert faults_of_reader(lambda: load(folder), str(file)) == ""


# Archives of torch.save, tokenizers


def test_a_compressed_archive_is_refused_before_it_is_unpacked(tmp_path):
    file = tmp_path / "bomb.ckpt"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("archive/data.pkl", *(f"archive/data/{k}" for k in range(20))):
            archive.writestr(name, bytes(10_000_000))
    assert file.stat().st_size < 1_000_000
    with pytest.raises(UserError, match=r"bomb\.ckpt.*210,000,000"):
        read_pickle(file)


@pytest.mark.parametrize(
    "content",
    [b"", b"PK", b"\x80\x02.", b"\x80\x02}q\0.", b"cos\nsystem\n(S'true'\ntR.", b"x" * 99],
)
def test_pickles(tmp_path, content):
    file = tmp_path / "in.ckpt"
    file.write_bytes(content)
    assert faults_of_reader(lambda: read_pickle(file), str(file)) == ""


@pytest.mark.parametrize(
    "content", [np.random.default_rng(0).bytes(5000), b"a b c\n", b"\0", b"#version\nab\n"], ids=len
)
def test_merges(models, tmp_path, content):
    folder = Path(shutil.copytree(models / "clip" / "model", tmp_path / "clip"))
    (folder / "tokenizer" / "merges.txt").write_bytes(content)
    assert faults_of_reader(lambda: TextEncoder.load(folder), str(folder / "tokenizer")) == ""


@pytest.mark.parametrize("vocabulary", ['{"a": "1"}', '{"a": -1}', '{"a": true}', "[]", "{}"])
def test_vocabularies(models, tmp_path, vocabulary):
    folder = Path(shutil.copytree(models / "clip" / "model", tmp_path / "clip"))
    (folder / "tokenizer" / "vocab.json").write_text(vocabulary)
    assert faults_of_reader(lambda: TextEncoder.load(folder), str(folder / "tokenizer")) == ""
