"""The whole model with random weights: one image at a time or many, saved, loaded, and refused."""

import sys

import numpy as np
import pytest
import torch

from foundation.errors import UserError
from ldm import TextToImage
from ldm.guidance import Guidance
from ldm.pipeline.sampling import Sampling
from ldm.samplers import SAMPLERS
from tests.helpers.random_models import make_pipeline, pixels

PROMPTS = ["a red heart", "a cat", "", "a blue square on a green circle", "seven"]


@pytest.fixture(scope="module")
def pipeline() -> TextToImage:
    return make_pipeline()


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_an_image_does_not_depend_on_its_batch(pipeline, sampler):
    """Equal to the last bit on a CPU, whichever images are drawn along and in whatever order."""
    prompts = (PROMPTS * 4)[:16]
    requests = pipeline.make_requests(prompts, seed=range(100, 116))
    guidance = Guidance(scale=3.0, rescale=0.5, parallel=0.5, max_norm=9.0, momentum=-0.5)
    sampling = Sampling(sampler=sampler, steps=3, guidance=guidance)
    together = pipeline.draw(requests, sampling, height=32, width=32)
    three = pipeline.draw([requests[k] for k in (15, 0, 4)], sampling, height=32, width=32)
    (alone,) = pipeline.draw([requests[4]], sampling, height=32, width=32)
    assert torch.equal(three[0], together[15]) and torch.equal(three[1], together[0])
    assert torch.equal(alone, together[4]) and torch.equal(alone, three[2])
    assert not torch.equal(together[4], together[9])  # the same prompt, another seed


@pytest.mark.parametrize("size", [1, 5, 16])
def test_nor_does_it_in_batches_of_a_size_of_ones_own(pipeline, size):
    """Of another size the pictures are the same up to rounding."""
    requests, sampling = pipeline.make_requests(PROMPTS * 2, seed=100), Sampling(steps=3)
    together = pipeline.draw(requests, sampling, batch_size=size)
    (alone,) = pipeline.draw(requests[-1:], sampling, batch_size=size)
    assert torch.equal(alone, together[-1])
    (usual,) = pipeline.draw(requests[-1:], sampling)
    torch.testing.assert_close(alone, usual, rtol=0, atol=1e-4)


@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "dpmpp_2m"])
def test_estimates_stay_within_their_range(pipeline, sampler):
    """The last latents of these samplers are the last estimate."""
    requests, found = pipeline.make_requests(PROMPTS), []
    for bound in (None, 0.1):
        sampling = Sampling(sampler=sampler, steps=3, clip_range=bound)
        found.append(max(z.abs().max().item() for z in pipeline.draw(requests, sampling)))
    assert found[0] > 0.2 and found[1] <= 0.1 + 1e-5


def test_pictures_of_one_call_equal_pictures_of_several(pipeline):
    together = pipeline(PROMPTS * 2, steps=3, seed=5)
    alone = pipeline([PROMPTS[2]], steps=3, seed=12)
    assert np.array_equal(pixels(together[7]), pixels(alone[0]))


def test_one_prompt_is_one_picture(pipeline):
    (alone,) = pipeline("a cat", steps=2)
    assert np.array_equal(pixels(alone), pixels(pipeline(["a cat"], steps=2)[0]))


@pytest.mark.parametrize("option", [{"seed": [1, 2, 3]}, {"negative_prompt": ["a", "b", "c"]}])
def test_seeds_and_negative_prompts_of_another_number_are_refused(pipeline, option):
    with pytest.raises(UserError, match=f"{next(iter(option))} has 3 values for 2 prompts"):
        pipeline(["a cat", "a dog"], **option)


@pytest.mark.parametrize(("watched", "progress"), [(True, True), (True, False), (False, True)])
def test_a_progress_bar_is_shown_to_people_alone(pipeline, watched, progress, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: watched, raising=False)
    pipeline(["a cat", "a dog"], steps=3, sampler="heun", progress=progress)
    shown = capsys.readouterr().err
    # Heun's method calls the network twice in each step but the last
    assert ("10/10" in shown) == (watched and progress)
    assert shown or not (watched and progress)


def test_a_function_counts_the_calls_of_the_network(pipeline):
    counts: list[int] = []
    pipeline(["a cat", "a dog"], steps=3, progress=counts.append)
    assert sum(counts) == 6


def test_it_says_what_it_is(pipeline):
    weights = sum(weight.numel() for weight in pipeline.unet.parameters()) / 1e6
    assert f"U-Net {weights:.1f} M" in repr(pipeline) and "cpu" in repr(pipeline)


def test_guidance_scale(pipeline):
    """0 ignores the prompt, 1 is plain conditional, and a negative prompt matters above 1."""

    def draw(prompt: str, scale: float, negative: str = "") -> np.ndarray:
        options = {"steps": 3, "guidance_scale": scale, "negative_prompt": negative}
        return pixels(pipeline([prompt], **options)[0])

    assert np.array_equal(draw("a cat", 0), draw("a dog", 0))
    assert not np.array_equal(draw("a cat", 1), draw("a dog", 1))
    assert np.array_equal(draw("a cat", 1, "blue"), draw("a cat", 1))
    assert not np.array_equal(draw("a cat", 4, "blue"), draw("a cat", 4))


def test_sizes_that_cannot_be_drawn_are_refused(pipeline):
    with pytest.raises(ValueError, match=r"30x32 .* multiples of 8\. Near: 24x32"):
        pipeline(["a cat"], height=32, width=30)


def test_values_that_are_not_finite_are_an_error(pipeline):
    broken = make_pipeline()
    broken.unet.conv_out.bias.data.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="not finite"):
        broken(["a cat"], steps=2)
