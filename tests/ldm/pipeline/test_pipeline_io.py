"""Whole models are saved, loaded, and refused if their parts do not fit together."""

import json
import os

import numpy as np
import pytest
import torch

from autoencoder import PRESETS as AUTOENCODERS
from autoencoder import Autoencoder
from foundation.errors import MissingFileError, UserError
from ldm import TextToImage
from ldm.pipeline.io import find_pipeline, read_model_provenance
from tests.helpers.random_models import make_pipeline, pixels


@pytest.fixture(scope="module")
def pipeline() -> TextToImage:
    return make_pipeline()


def test_a_loaded_model_draws_the_same_picture(pipeline, tmp_path):
    pipeline.save(tmp_path / "model", {"steps": 1})
    again = TextToImage.load(tmp_path)
    assert again.schedule_config == pipeline.schedule_config
    before, after = (p(["a cat"], steps=3)[0] for p in (pipeline, again))
    assert np.array_equal(pixels(before), pixels(after))


def test_the_provenance_of_a_model_is_read_again(pipeline, tmp_path):
    pipeline.save(tmp_path / "model", {"steps": 1})
    assert read_model_provenance(tmp_path) == {"steps": 1}


def test_a_model_saved_twice_or_loaded_and_saved_gives_the_same_bytes(pipeline, tmp_path):
    for copy in ("once", "twice"):
        pipeline.save(tmp_path / copy / "model", {"steps": 1})
    TextToImage.load(tmp_path / "once").save(tmp_path / "again" / "model", {"steps": 1})
    files = [path for path in (tmp_path / "once").rglob("*") if path.is_file()]
    assert {".safetensors", ".json", ".txt"} <= {path.suffix for path in files}
    for path in files:
        for copy in ("twice", "again"):
            other = tmp_path / copy / path.relative_to(tmp_path / "once")
            assert other.read_bytes() == path.read_bytes(), other


def test_an_autoencoder_that_the_unet_was_not_trained_with_is_refused(pipeline, tmp_path):
    pipeline.save(tmp_path / "model")
    torch.manual_seed(1)
    other = Autoencoder(AUTOENCODERS["tiny-32"])
    other.save(tmp_path / "model" / "vae")
    with pytest.raises(UserError, match=f"{pipeline.autoencoder.sha256}.*{other.sha256}"):
        TextToImage.load(tmp_path)


def test_a_changed_tokenizer_is_noticed_by_the_golden_embedding(pipeline, tmp_path):
    pipeline.save(tmp_path / "model")
    file = tmp_path / "model" / "latentsmith.json"
    facts = json.loads(file.read_text())
    facts["bindings"]["golden"][0] += 1.0
    file.write_text(json.dumps(facts))
    with pytest.raises(UserError, match="golden"):
        TextToImage.load(tmp_path)


def test_a_failed_save_leaves_the_old_model(pipeline, tmp_path, monkeypatch):
    pipeline.save(tmp_path / "model")
    before = sorted(path.name for path in (tmp_path / "model").iterdir())

    def disk_is_full(*args: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("interop.safetensors_io.save_file", disk_is_full)
    with pytest.raises(OSError, match="No space"):
        pipeline.save(tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == before


def test_a_replacement_that_was_interrupted_between_two_renames_is_undone(pipeline, tmp_path):
    pipeline.save(tmp_path / "model", {"steps": 1})
    os.replace(tmp_path / "model", tmp_path / ".model.old")
    assert read_model_provenance(tmp_path) == {"steps": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_model_in_a_run_folder_is_found(pipeline, tmp_path):
    pipeline.save(tmp_path / "run" / "model")
    assert find_pipeline(tmp_path / "run") == tmp_path / "run" / "model"
    assert find_pipeline(tmp_path / "run" / "model") == tmp_path / "run" / "model"


@pytest.mark.parametrize(
    ("made", "match"),
    [
        ("config.json", "same command again"),
        ("model/pytorch_lora_weights.safetensors", "LoRA"),
        ("other", "model_index.json"),
    ],
)
def test_the_reason_is_given_if_there_is_no_model(tmp_path, made, match):
    (tmp_path / made).parent.mkdir(exist_ok=True)
    (tmp_path / made).write_text('{"text_encoder": "clip"}' if made.endswith("json") else "")
    with pytest.raises(MissingFileError, match=match):
        find_pipeline(tmp_path)
