"""Options of an image: which values and combinations are refused, seeds, input images."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import sample
from foundation.errors import UserError
from generation.meaning import make_task
from generation.options import GenerationOptions, parse_seeds
from ldm import TextToImage
from tests.helpers.images import picture
from tests.helpers.sample_runs import run_sample

RANGES = st.lists(st.tuples(st.integers(0, 1000), st.integers(0, 5)), min_size=1, max_size=5)


@given(RANGES)
def test_seeds_are_what_numbers_and_ranges_say(ranges):
    text = ",".join(str(a) if more == 0 else f"{a} - {a + more}" for a, more in ranges)
    expected = [seed for a, more in ranges for seed in range(a, a + more + 1)]
    assert list(parse_seeds(text, 1)) == expected


@given(st.integers(0, 2**63 - 1), st.integers(1, 10))
def test_one_seed_is_the_first_of_count(seed, count):
    assert parse_seeds(str(seed), count) == (seed,)


@pytest.mark.parametrize("text", ["", "a", "1,,2", "-1", "3-1", str(2**63), "1.5", "1;2"])
def test_malformed_seeds_are_refused(text):
    with pytest.raises(UserError, match="--seed"):
        parse_seeds(text, 1)


def test_several_seeds_do_not_go_with_a_count_and_are_not_too_many():
    with pytest.raises(UserError, match="--count 2"):
        parse_seeds("1,2", 2)
    with pytest.raises(UserError, match="100000"):
        parse_seeds("0-9999999999", 1)


def test_every_prompt_has_an_image_for_each_seed(world, tmp_path):
    flags = ("--seed", "4,8-9", "--name", "{prompt}-{seed}", "--no-grid")
    names = [path.stem for path in run_sample(world, tmp_path, *flags, prompts=["red", "green"])]
    assert names == ["green-4", "green-8", "green-9", "red-4", "red-8", "red-9"]


def test_options_without_effect_are_refused_before_a_model_is_opened(refused, tmp_path_factory):
    image = picture(tmp_path_factory.mktemp("input") / "input.png", size=(32, 32))
    init = ("--init-image", image)
    for pattern, flags in {
        "--strength is 1.5; .*0 to 1": (*init, "--strength", 1.5),
        "--strength is nan": (*init, "--strength", "nan"),
        "--strength.*--init-image.*--style-image": ("--strength", 0.5),
        "--mask.*--init-image": ("--mask", image),
        "--mask.*--upscale": (*init, "--mask", image, "--upscale", 2),
        "--init-image.*--style-image": (*init, "--style-image", image),
        "--resample.*--mask.*--outpaint": ("--resample", 2),
        "--resample.*ddpm.*dpmpp_2m": (*init, "--mask", image, "--resample", 2),
        "--source-prompt.*--style-image": ("--source-prompt", "x"),
        "1001": ("--steps", 1001),
        "dpmpp_2m.*eta": ("--eta", 0.5),
        "--steps 1 .*--times": ("--times", 999, 500),
        "--negative-prompt.*--guidance-scale 1": ("--guidance-scale", 1, "--negative-prompt", "x"),
        "--guidance-rescale.*scale 0": ("--guidance-scale", 0, "--guidance-rescale", 0.5),
        "--weak-model.*negative": ("--weak-model", "x", "--negative-prompt", "x"),
        "--quality is 101; .*1 to 100": ("--quality", 101),
        "--quality.*jpeg.*webp": ("--quality", 80),
        "--lora-scale.*--lora": ("--lora-scale", 0.5),
        "--seed 3-1": ("--seed", "3-1"),
        "--save-latents.*--interpolate": ("--save-latents", "--interpolate", 3, "-n", 2),
    }.items():
        refused(sample, pattern, *flags)


def test_input_images_that_do_not_suit_are_refused(world, tmp_path):
    pipeline = TextToImage.load(world / "ldm")
    image = picture(tmp_path / "image.png", size=(32, 32))
    text = tmp_path / "text.png"
    text.write_text("no image")
    tiny = picture(tmp_path / "tiny.png", size=(2, 2))
    odd = picture(tmp_path / "odd.png", size=(37, 32))
    small = picture(tmp_path / "small.png", size=(16, 32))
    black = tmp_path / "black.png"
    Image.new("L", (32, 32)).save(black)
    too_large = 320_000_000
    for part, options in (
        ("text.png", {"init_image": text}),
        ("nowhere.png", {"style_image": tmp_path / "nowhere.png"}),
        ("2x2", {"init_image": tiny}),
        ("37x32", {"init_image": odd}),
        ("16x32", {"init_image": image, "mask": small}),
        ("black", {"init_image": image, "mask": black}),
        ("37x32", {"init_image": image, "outpaint": (0, 0, 5, 0)}),
        ("0, 0, 0, 0", {"init_image": image, "outpaint": (0, 0, 0, 0)}),
        ("2 times", {"init_image": image, "upscale": 1}),
        ("32000x32000", {"init_image": image, "upscale": 1000}),
        ("32x320000032", {"init_image": image, "outpaint": (0, 0, 0, too_large)}),
        ("800000x320", {"init_image": image, "width": 800000, "height": 320}),
    ):
        with pytest.raises(UserError) as refused:
            make_task(GenerationOptions(**options), pipeline)
        assert part in str(refused.value)


def test_an_input_image_is_resized_to_the_size_asked_for(world, tmp_path):
    odd: Path = picture(tmp_path / "odd.png", size=(37, 32))
    options = GenerationOptions(init_image=odd, width=40, height=64)
    assert make_task(options, TextToImage.load(world / "ldm")).size == (64, 40)
