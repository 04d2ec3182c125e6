"""Weighted prompts and several prompts in one, down to the pixels."""

import numpy as np
import pytest
import torch
from jaxtyping import Int

from foundation.errors import UserError
from ldm import TextToImage
from ldm.guidance import Guidance
from ldm.pipeline.sampling import Sampling
from tests.helpers.random_models import make_pipeline

SAMPLING = Sampling(steps=3, guidance=Guidance(scale=3.0))


@pytest.fixture(scope="module")
def pipeline() -> TextToImage:
    return make_pipeline()


def generate(pipeline: TextToImage, prompt: str, **options) -> Int[np.ndarray, "h w c"]:
    return np.asarray(pipeline([prompt], sampling=SAMPLING, **options)[0]).astype(int)


def test_weights_are_read_only_if_asked_for(pipeline):
    plain = generate(pipeline, "a red cat")
    assert np.array_equal(generate(pipeline, "a (red:1) cat", prompt_weights=True), plain)
    assert not np.array_equal(generate(pipeline, "a (red:3) cat", prompt_weights=True), plain)
    as_words = generate(pipeline, "a (red:3) cat")
    assert not np.array_equal(as_words, generate(pipeline, "a (red:3) cat", prompt_weights=True))
    assert np.array_equal(as_words, generate(pipeline, r"a \(red:3\) cat", prompt_weights=True))


def test_weight_0_gives_the_empty_prompt(pipeline):
    """Except for the end token, which has attended to the words."""
    ((conditioning, share),) = pipeline.condition_on("(red cat:0)", prompt_weights=True)
    torch.testing.assert_close(conditioning.text[:, :3], pipeline.text_encoder([""])[:, :3])
    assert share == 1


def test_two_prompts_in_one_image(pipeline):
    both = generate(pipeline, "a cat AND a dog", prompt_weights=True)
    assert np.array_equal(
        both, generate(pipeline, "a cat :0.5 AND a dog :0.5", prompt_weights=True)
    )
    cat = generate(pipeline, "a cat")
    assert not np.array_equal(both, cat)
    twice = generate(pipeline, "a cat :0.25 AND a cat :0.75", prompt_weights=True)
    assert np.abs(twice - cat).max() <= 1


def test_images_of_one_and_of_two_prompts_in_one_call(pipeline):
    prompts = ["a cat AND a dog", "a cat", "(a:2) dog", "a cat AND a dog"]
    together = pipeline(prompts, sampling=SAMPLING, seed=5, prompt_weights=True)
    for k in (3, 1):
        alone = generate(pipeline, prompts[k], seed=5 + k, prompt_weights=True)
        assert np.array_equal(np.asarray(together[k]), alone)


def test_a_negative_prompt_cannot_be_two(pipeline):
    with pytest.raises(UserError, match="a AND b"):
        generate(pipeline, "a cat", negative_prompt="a AND b", prompt_weights=True)
