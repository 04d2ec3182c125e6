"""The weak model of autoguidance: from a state and from a folder, and only of the same parts."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from jaxtyping import Int

from foundation.errors import MissingFileError, UserError
from generation.autoguidance import open_weak_model
from ldm import TextToImage
from ldm.guidance import Guidance
from ldm.pipeline.sampling import Sampling
from tests.helpers.random_models import make_pipeline
from training.checkpoint import save_state


@pytest.fixture(scope="module")
def pipeline() -> TextToImage:
    return make_pipeline()


def generate(pipeline: TextToImage, scale: float = 3.0, **options) -> Int[np.ndarray, "h w c"]:
    sampling = Sampling(steps=3, guidance=Guidance(scale=scale))
    return np.asarray(pipeline(["a cat"], sampling=sampling, **options)[0]).astype(int)


def save_run(pipeline: TextToImage, run: Path, **config: str) -> Path:
    """Write a run folder with one state; return that."""
    hashes = {
        "vae_sha256": pipeline.autoencoder.sha256,
        "text_encoder_sha256": pipeline.text_encoder.sha256,
    }
    run.mkdir()
    (run / "config.json").write_text(json.dumps(hashes | config))
    return save_state(run / "state", 7, {"ema": pipeline.unet})


def test_a_state_and_a_model_folder_give_the_same_weak_model(pipeline, tmp_path):
    earlier = make_pipeline()
    with torch.no_grad():
        for weight in earlier.unet.parameters():
            weight.mul_(0.9)
    unguided, images = generate(pipeline), []
    earlier.save(tmp_path / "smaller" / "model")
    for source in (save_run(earlier, tmp_path / "run"), tmp_path / "smaller"):
        weak, _ = open_weak_model(source, pipeline)
        assert torch.equal(weak.unet.conv_in.weight, earlier.unet.conv_in.weight)
        images.append(generate(pipeline, weak=weak))
    assert np.array_equal(*images)
    assert not np.array_equal(images[0], unguided)


def test_guided_away_from_itself_a_model_is_unguided(pipeline, tmp_path):
    weak, _ = open_weak_model(save_run(pipeline, tmp_path / "run"), pipeline)
    difference = generate(pipeline, weak=weak) - generate(pipeline, scale=1)
    assert np.abs(difference).max() <= 1


def test_a_weak_model_of_other_parts_is_refused(pipeline, tmp_path):
    state = save_run(pipeline, tmp_path / "run", vae_sha256="abc")
    with pytest.raises(UserError) as refused:
        open_weak_model(state, pipeline)
    assert pipeline.autoencoder.sha256 in str(refused.value) and "abc" in str(refused.value)
    pipeline.unet.save(tmp_path / "unet")
    with pytest.raises(UserError, match="autoencoder"):
        open_weak_model(tmp_path / "unet", pipeline)


def test_a_state_without_averaged_weights_is_refused(pipeline, tmp_path):
    state = save_run(pipeline, tmp_path / "run")
    (state / "ema.safetensors").unlink()
    with pytest.raises(MissingFileError, match=r"ema\.safetensors"):
        open_weak_model(state, pipeline)
