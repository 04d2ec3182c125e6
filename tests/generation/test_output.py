"""Names and formats of the files that sample.py writes, and what it writes besides images."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file

from foundation.errors import UserError
from generation.output import MAX_PROMPT_LENGTH, plan_names, slug
from ldm import TextToImage
from tests.helpers.sample_runs import reproduce, run_sample

FIELDS = {"seed": 5, "prompt": "a/b: c?", "sampler": "ddim", "steps": 7}


def test_names_are_filled_in_and_safe(tmp_path):
    paths = plan_names(tmp_path, "{prompt}-{seed:04d}-{number}", [".png"], [FIELDS] * 2)
    assert [path.name for path in paths] == ["a-b-c-0005-0", "a-b-c-0005-1"]


@given(st.text())
def test_any_prompt_gives_a_file_name(prompt):
    name = slug(prompt)
    assert 0 < len(name) <= MAX_PROMPT_LENGTH
    assert name == Path(name).name and not set(name) & set('/\\:*?"<>|.\0\n')


@pytest.mark.parametrize("prompt", ["", "../..", "?"])
def test_a_prompt_without_letters_has_a_name_too(prompt):
    assert slug(prompt) == "no-prompt"


def test_numbers_continue_from_the_highest_and_leave_gaps(tmp_path):
    (tmp_path / "x-0041.png").touch()
    (tmp_path / "x-0050.jpg").touch()
    (path,) = plan_names(tmp_path, "x-{number:04d}", [".png", ".st"], [FIELDS])
    assert path.name == "x-0042"


@pytest.mark.parametrize(
    ("pattern", "part"),
    [
        ("same", "same"),
        ("{nonsense}", "{number}, {seed}"),
        ("a/{number}", "folder"),
        ("{number", "{number"),
        ("{prompt:d}", "{prompt:d}"),
        ("", "--name"),
    ],
)
def test_patterns_that_cannot_name_the_files_are_refused(tmp_path, pattern, part):
    with pytest.raises(UserError) as refused:
        plan_names(tmp_path, pattern, [".png"], [FIELDS] * 2)
    assert part in str(refused.value)


def test_no_file_is_overwritten(tmp_path):
    (tmp_path / "x-0041.png").touch()
    with pytest.raises(UserError, match="x-0041"):
        plan_names(tmp_path, "x-0041", [".png"], [FIELDS])


def test_formats_of_files(world, tmp_path, capsys):
    files = run_sample(world, tmp_path, "--format", "webp", "-n", 2, "--quality", 80)
    assert [file.name for file in files] == ["00000.webp", "00001.webp", "grid-0000.webp"]
    assert tmp_path / "00000.jpg" in run_sample(world, tmp_path, "--format", "jpeg")
    printed = reproduce(capsys, tmp_path / "00000.jpg", tmp_path / "again")
    assert "not compared" in printed


def test_saved_latents_are_those_of_the_image(world, tmp_path):
    run_sample(world, tmp_path, "--save-latents")
    latents = load_file(tmp_path / "00000.safetensors")["latents"]
    image = TextToImage.load(world / "ldm").to_picture(latents)
    with Image.open(tmp_path / "00000.png") as written:
        assert image.tobytes() == written.tobytes()


def test_previews_are_written_every_so_many_calls(world, tmp_path):
    run_sample(world, tmp_path, "-n", 2, "--steps", 4, "--preview-every", 2)
    names = sorted(path.name for path in (tmp_path / "previews").iterdir())
    assert names == [f"0000{k}-00{call}.png" for k in (0, 1) for call in (2, 4)]
    last, final = tmp_path / "previews" / "00001-004.png", tmp_path / "00001.png"
    with Image.open(last) as preview, Image.open(final) as result:
        assert preview.tobytes() == result.tobytes()  # the last call gives the result
    run_sample(world, tmp_path / "none")
    assert not (tmp_path / "none" / "previews").exists()
