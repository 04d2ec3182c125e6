"""Weighted prompts, several prompts and a weaker model, down to the pictures."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from generation.autoguidance import open_weak
from generation.notes import notes
from ldm import TextToImage
from ldm.guidance import Guidance
from ldm.pipeline.sampling import Sampling
from tests.helpers.random_models import make_pipeline
from training.checkpoint import save_state


@pytest.fixture(scope="module")
def pipeline() -> TextToImage:
    return make_pipeline()


def draw(pipeline: TextToImage, prompt: str, scale: float = 3.0, **how) -> np.ndarray:
    sampling = Sampling(steps=3, guidance=Guidance(scale=scale))
    return np.asarray(pipeline([prompt], sampling=sampling, **how)[0]).astype(int)


def test_signs_are_read_only_if_asked_for(pipeline):
    plain = draw(pipeline, "a red cat")
    assert np.array_equal(draw(pipeline, "a (red:1) cat", prompt_weights=True), plain)
    assert not np.array_equal(draw(pipeline, "a (red:3) cat", prompt_weights=True), plain)
    as_words = draw(pipeline, "a (red:3) cat")
    assert not np.array_equal(as_words, draw(pipeline, "a (red:3) cat", prompt_weights=True))
    assert np.array_equal(as_words, draw(pipeline, r"a \(red:3\) cat", prompt_weights=True))


def test_a_prompt_of_no_weight_is_the_empty_prompt(pipeline):
    """But for its end token, which has seen the words: with all of it at 0, guidance is idle."""
    text_encoder = pipeline.text_encoder
    ((context, share),) = pipeline.condition_on("(red cat:0)", prompt_weights=True)
    torch.testing.assert_close(context[:, :3], text_encoder([""])[:, :3])
    assert share == 1


def test_two_prompts_in_one_picture(pipeline):
    both = draw(pipeline, "a cat AND a dog", prompt_weights=True)
    assert np.array_equal(both, draw(pipeline, "a cat :0.5 AND a dog :0.5", prompt_weights=True))
    cat = draw(pipeline, "a cat")
    assert not np.array_equal(both, cat)
    twice = draw(pipeline, "a cat :0.25 AND a cat :0.75", prompt_weights=True)
    assert np.abs(twice - cat).max() <= 1


def test_pictures_of_one_and_of_two_prompts_in_one_call(pipeline):
    prompts = ["a cat AND a dog", "a cat", "(a:2) dog", "a cat AND a dog"]
    sampling = Sampling(steps=3, guidance=Guidance(scale=3.0))
    together = pipeline(prompts, sampling=sampling, seed=5, prompt_weights=True)
    for k in (3, 1):
        alone = pipeline([prompts[k]], sampling=sampling, seed=5 + k, prompt_weights=True)[0]
        assert np.array_equal(np.asarray(together[k]), np.asarray(alone))


def test_a_negative_prompt_is_one(pipeline):
    with pytest.raises(ValueError, match="AND parts prompts"):
        draw(pipeline, "a cat", negative_prompt="a AND b", prompt_weights=True)


def test_notes_say_how_a_prompt_is_read(pipeline):
    assert notes(pipeline, "a cat", signs=True) == notes(pipeline, "a (cat)", signs=False) == []
    (note,) = notes(pipeline, "a (cat:1.3) AND dog", signs=True)
    assert "'a', 'cat' times 1.3 (share 0.5) and 'dog' (share 0.5)" in note
    assert "--plain-prompts" in note
    long = " ".join(["one two three four five"] * 6)
    (note,) = notes(pipeline, long, signs=True)
    assert "32 tokens, but this model reads 24" in note and note.endswith(
        repr(" ".join(long.split()[22:]))
    )


class Weights:
    def __init__(self, unet):
        self.unet = unet

    def state_dict(self):
        return self.unet.state_dict()


def save_run(pipeline: TextToImage, run: Path, **changed: str) -> Path:
    facts = {
        "vae_sha256": pipeline.autoencoder.sha256,
        "text_encoder_sha256": pipeline.text_encoder.sha256,
    }
    run.mkdir()
    (run / "config.json").write_text(json.dumps(facts | changed))
    return save_state(run / "state", 7, {"ema": Weights(pipeline.unet)})


def test_a_weaker_model_from_a_state_and_from_a_model_folder(pipeline, tmp_path):
    earlier = make_pipeline()
    with torch.no_grad():
        for weight in earlier.unet.parameters():
            weight.mul_(0.9)
    plain, drawn = draw(pipeline, "a cat"), []
    earlier.save(tmp_path / "smaller" / "model")
    for source in (save_run(earlier, tmp_path / "run"), tmp_path / "smaller"):
        weak, _ = open_weak(source, pipeline)
        assert torch.equal(weak.unet.conv_in.weight, earlier.unet.conv_in.weight)
        drawn.append(draw(pipeline, "a cat", weak=weak))
    assert np.array_equal(*drawn) and not np.array_equal(drawn[0], plain)


def test_led_away_from_itself_a_model_draws_plainly(pipeline, tmp_path):
    weak, _ = open_weak(save_run(pipeline, tmp_path / "run"), pipeline)
    assert np.abs(draw(pipeline, "a cat", weak=weak) - draw(pipeline, "a cat", scale=1)).max() <= 1


def test_a_weaker_model_of_other_parts_is_refused(pipeline, tmp_path):
    state = save_run(pipeline, tmp_path / "run", vae_sha256="abc")
    with pytest.raises(ValueError, match=r"autoencoder of the stronger.*with that of sha256 abc"):
        open_weak(state, pipeline)
    pipeline.unet.save(tmp_path / "unet")
    with pytest.raises(ValueError, match="does not say with which"):
        open_weak(tmp_path / "unet", pipeline)
    (state / "ema.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"no ema\.safetensors"):
        open_weak(state, pipeline)
