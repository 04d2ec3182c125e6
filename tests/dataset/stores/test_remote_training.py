"""A training over S3 that is stopped and continued equals an unbroken one over local files."""

import pytest
import torch
from safetensors.torch import load_file

from dataset import loader
from stages.autoencoder import AutoencoderTrainer
from tests.helpers.data.servers import CREDENTIALS, serve_s3
from tests.helpers.shards import make_shards
from tests.helpers.short_runs import ADVERSARY, COMMON, killed_in_step, numbers


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_continued_training_over_s3_equals_one_over_files(tmp_path, monkeypatch):
    import train_vae

    pytest.importorskip("s3fs")
    pytest.importorskip("moto")
    monkeypatch.setenv("LATENTSMITH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("LATENTSMITH_INDEX", str(tmp_path / "index"))
    monkeypatch.setattr(loader, "bytes_needed", lambda *_: 2**60)  # read in every step
    pattern = make_shards(tmp_path, count=24)
    flags = [*COMMON, *ADVERSARY, "--save-every", "1"]
    train_vae.main(["--data", pattern, *flags, "--out", str(tmp_path / "local")])
    with serve_s3(tmp_path / "shards") as bucket:
        remote = ["--data", f"{bucket}/*.tar", *flags, "--out", str(tmp_path / "remote")]
        with killed_in_step(AutoencoderTrainer, 2):
            train_vae.main(remote)
        train_vae.main(remote)
    assert numbers(tmp_path / "remote") == numbers(tmp_path / "local")
    weights = [
        file.relative_to(tmp_path / "local") for file in (tmp_path / "local").rglob("*.safetensors")
    ]
    assert weights
    for file in weights:
        remote_weights = load_file(tmp_path / "remote" / file)
        for name, weight in load_file(tmp_path / "local" / file).items():
            assert torch.equal(weight, remote_weights[name]), (file, name)
    for file in tmp_path.rglob("*"):
        if file.is_file():
            assert not any(value.encode() in file.read_bytes() for value in CREDENTIALS.values())
