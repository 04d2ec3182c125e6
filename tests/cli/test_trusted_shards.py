"""Trainings on shards that state hashes, and a first check that the ranks of a training share."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import train_vae
from dataset import index
from dataset.folder import read_folder
from dataset.options import ReadOptions
from tests.helpers.bad_calls import refusal
from tests.helpers.shards import make_hashed_shards

ROOT = Path(__file__).parents[2]
TRUST = "--trust-hashes"


def training(data: str, out: Path, *flags: object) -> list[str]:
    words = ("--data", data, "--out", out, "--preset", "tiny-32", "--steps", 2, "--batch-size", 4)
    return [str(word) for word in (*words, "--device", "cpu", "--held-out", 0.2, *flags)]


@pytest.fixture
def checked(monkeypatch) -> list[str]:
    """Names of the images that a first check has decoded."""
    names, inspect = [], index.inspect_image

    def recording(path):
        names.append(path.name)
        return inspect(path)

    monkeypatch.setattr(index, "inspect_image", recording)
    return names


def weights(run: Path) -> dict[str, Tensor]:
    return load_file(run / "model" / "diffusion_pytorch_model.safetensors")


def test_trusted_hashes_spare_the_check_and_change_nothing(tmp_path, checked):
    """The first image of each shard is decoded, and the one without a hash."""
    data = make_hashed_shards(tmp_path / "data")
    train_vae.main(training(data, tmp_path / "trusting", TRUST))
    assert sorted(checked) == ["000.jpg", "003.jpg", "005.jpg"]
    train_vae.main(training(data, tmp_path / "plain"))
    assert len(checked) == 3 + 10
    trusting, plain = weights(tmp_path / "trusting"), weights(tmp_path / "plain")
    assert all(torch.equal(trusting[name], plain[name]) for name in plain)
    assert json.loads((tmp_path / "trusting" / "config.json").read_text())["trust_hashes"] is True


def test_a_damaged_image_stops_a_training_that_trusted_its_hash(tmp_path, capsys):
    data = make_hashed_shards(tmp_path / "data", damage=6)
    given = training(data, tmp_path / "run", TRUST)
    message = refusal(capsys, train_vae, given)
    assert re.search(r"data/1\.tar: 006\.jpg.*sha256", message)
    assert not (tmp_path / "run" / "model").exists()


def test_shards_with_another_hash_are_refused_by_the_flag(tmp_path, capsys):
    given = training(make_hashed_shards(tmp_path / "data", stated=5), tmp_path / "run", TRUST)
    assert re.search(r"1\.tar: 005\.jpg.*--trust-hashes", refusal(capsys, train_vae, given))


@pytest.mark.slow  # torchrun
@pytest.mark.parametrize("flags", [(), (TRUST,)], ids=["checked", "trusted"])
def test_two_ranks_of_a_command_line_share_the_first_check(tmp_path, flags):
    """The index is that of one process, to the byte."""
    data = make_hashed_shards(tmp_path / "data")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", "train_vae.py", *training(data, tmp_path / "two", *flags)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    (made,) = (tmp_path / "data" / ".latentsmith").iterdir()
    found = {file.name: file.read_bytes() for file in made.iterdir()}
    index.remove_folders(made.parent)
    read_folder(data, options=ReadOptions(trust_hashes=bool(flags)))
    (made,) = (tmp_path / "data" / ".latentsmith").iterdir()
    assert {file.name: file.read_bytes() for file in made.iterdir()} == found
    assert (tmp_path / "two" / "model").is_dir()
