"""`sample.py --reproduce`: the same pixels from the record in a file, or an error that says why."""

import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import sample
from foundation.errors import UserError
from generation.metadata import encode_image, read_record
from generation.options import GenerationOptions
from generation.reproduce import RecordedCall, compare_pixels, entries_of_record, find_model
from ldm import TextToImage
from tests.helpers.bad_calls import refusal
from tests.helpers.images import picture
from tests.helpers.sample_runs import reproduce, reproduce_flags, run_sample

FLAGS = {
    "text": ("--seed", 7, "-n", 2, "--negative-prompt", "café", "--guidance-interval", 0, 0.5),
    "sampler": ("--sampler", "dpmpp_2m_sde", "--steps", 3, "--eta", 0.5, "--spacing", "karras"),
    "times": ("--times", 999, 500.5, 20, "--steps", 25, "--guidance-scale", 1),
    "img2img": ("--init-image", "INPUT", "--strength", 0.5, "--steps", 2),
    "edit": ("--style-image", "INPUT", "--source-prompt", "a cat", "--variation", 0.3),
    "window": ("--width", 64, "--window", 32),
    "dtype": ("--dtype", "bf16"),
    "batch size": ("--batch-size", 3, "-n", 2),
    "prompt weights": ("--negative-prompt", "a (cat:1.5)", "--guidance-parallel", 0, "--steps", 2),
    "plain": ("--plain-prompts", "--negative-prompt", "a (cat", "--guidance-max-norm", 9),
    "weak model": ("--weak-model", "WEAK", "--guidance-momentum", -0.5, "--steps", 2),
}


@pytest.fixture(scope="module")
def input_image(tmp_path_factory) -> Path:
    return picture(tmp_path_factory.mktemp("input") / "input.png", size=(32, 32))


@pytest.mark.parametrize("kind", FLAGS)
def test_a_recorded_image_is_reproduced_with_its_record(world, tmp_path, capsys, input_image, kind):
    files = {"INPUT": input_image, "WEAK": world / "ldm"}
    run_sample(world, tmp_path / "first", *(files.get(flag, flag) for flag in FLAGS[kind]))
    file = max((tmp_path / "first").glob("0*.png"))
    paths = []  # a picture names no files to be read
    for flag, path in pairwise(FLAGS[kind]):
        if path in files:
            paths += [flag, files[path]]
    printed = reproduce(capsys, file, tmp_path / "again", "--model", world / "ldm", *paths)
    assert f"the same pixels as {file}" in printed
    with Image.open(file) as first, Image.open(tmp_path / "again" / "00000.png") as second:
        assert first.tobytes() == second.tobytes()
        assert first.text == second.text


def test_the_old_name_of_the_flag_still_works(world, tmp_path, capsys):
    run_sample(world, tmp_path / "first")
    file = tmp_path / "first" / "00000.png"
    flags = reproduce_flags(file, tmp_path / "again", "--model", world / "ldm")
    sample.main(["--from-png", *flags[1:]])
    assert f"the same pixels as {file}" in capsys.readouterr().out


def test_another_model_is_refused_by_its_hash(world, tmp_path, capsys):
    run_sample(world, tmp_path)
    model = TextToImage.load(world / "ldm")
    model.unet.conv_out.bias.data += 1
    model.save(tmp_path / "other" / "model")
    flags = reproduce_flags(tmp_path / "00000.png", tmp_path / "again")
    message = refusal(capsys, sample, [*flags, "--model", str(tmp_path / "other")])
    recorded = read_record(tmp_path / "00000.png")["hashes"]["unet"]
    assert "unet" in message and recorded in message and "--model" in message
    assert not (tmp_path / "again").exists()


def test_options_and_prompts_of_the_record_are_refused_on_the_command_line(world, tmp_path, capsys):
    run_sample(world, tmp_path)
    flags = reproduce_flags(tmp_path / "00000.png", tmp_path / "again")
    assert "--steps" in refusal(capsys, sample, [*flags, "--steps", "3"])
    assert "prompt" in refusal(capsys, sample, [*flags, "red"])
    assert "--interpolate" in refusal(capsys, sample, [*flags, "--interpolate", "2"])


def test_a_weak_model_may_have_moved_but_not_changed(world, tmp_path, capsys):
    shutil.copytree(world / "ldm", tmp_path / "weak")
    flags = (*FLAGS["weak model"][2:], "--weak-model", tmp_path / "weak")
    run_sample(world, tmp_path / "first", *flags)
    file = tmp_path / "first" / "00000.png"
    moved = (tmp_path / "weak").rename(tmp_path / "moved")
    model = ("--model", world / "ldm")
    assert "--weak-model" in refusal(capsys, sample, reproduce_flags(file, tmp_path / "no", *model))
    printed = reproduce(capsys, file, tmp_path / "again", "--weak-model", moved, *model)
    assert "the same pixels" in printed
    other = TextToImage.load(moved)
    other.unet.conv_out.bias.data += 1
    other.save(moved / "model")
    flags = reproduce_flags(file, tmp_path / "third", "--weak-model", moved, *model)
    message = refusal(capsys, sample, flags)
    assert "weak_model" in message and "--weak-model" in message
    assert read_record(file)["hashes"]["weak_model"] in message
    run_sample(world, tmp_path / "alone")
    alone = tmp_path / "alone" / "00000.png"
    flags = reproduce_flags(alone, tmp_path / "third", "--weak-model", moved)
    message = refusal(capsys, sample, flags)
    assert str(alone) in message and "--weak-model" in message
    assert not (tmp_path / "third").exists()


def test_other_pixels_are_an_error(world, tmp_path, capsys):
    file = tmp_path / "00000.png"
    run_sample(world, tmp_path)
    with Image.open(file) as image:
        changed, record = np.asarray(image).copy(), read_record(file)
    changed[0, 0, 0] ^= 1
    file.write_bytes(encode_image(Image.fromarray(changed), record))
    flags = reproduce_flags(file, tmp_path / "again", "--model", world / "ldm")
    message = refusal(capsys, sample, flags)
    assert str(file) in message and "pixels" in message


def test_pixels_are_compared_frame_by_frame_and_only_in_lossless_formats(tmp_path, capsys):
    image = Image.new("RGB", (8, 8), (200, 0, 0))
    other = Image.new("RGB", (8, 8), (0, 200, 0))
    for name, frames in {"a": [image, other], "b": [image, other], "c": [image, image]}.items():
        image.save(tmp_path / f"{name}.gif", save_all=True, append_images=frames[1:])
        frames[1].save(tmp_path / f"{name}.jpg")
    compare_pixels(tmp_path / "a.gif", tmp_path / "b.gif")
    with pytest.raises(UserError, match=r"a\.gif"):
        compare_pixels(tmp_path / "c.gif", tmp_path / "a.gif")
    image.save(tmp_path / "shorter.gif")
    with pytest.raises(UserError, match=r"a\.gif"):
        compare_pixels(tmp_path / "shorter.gif", tmp_path / "a.gif")
    capsys.readouterr()
    compare_pixels(tmp_path / "c.jpg", tmp_path / "a.jpg")
    assert "not compared" in capsys.readouterr().out


def test_input_files_must_be_unchanged(world, tmp_path, capsys):
    start = picture(tmp_path / "start.png", size=(32, 32))
    run_sample(world, tmp_path / "first", "--init-image", start)
    file = tmp_path / "first" / "00000.png"
    recorded = read_record(file)["files"]["init_image"]
    assert read_record(file)["init_image"] == "start.png"
    message = refusal(capsys, sample, reproduce_flags(file, tmp_path / "again"))
    assert "--init-image" in message and recorded in message and "start.png" in message
    flags = reproduce_flags(file, tmp_path / "again", "--init-image", start)
    picture(start, seed=1, size=(32, 32))
    message = refusal(capsys, sample, flags)
    assert str(start) in message and recorded in message
    start.unlink()
    assert str(start) in refusal(capsys, sample, flags)


def test_the_model_is_found_in_the_working_folder_alone(world, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(world / "ldm", tmp_path / "runs" / "mine")
    run_sample(world, tmp_path / "first", "--model", tmp_path / "runs" / "mine")
    file = tmp_path / "first" / "00000.png"
    assert read_record(file)["model"] == "mine" and str(tmp_path).encode() not in file.read_bytes()
    printed = reproduce(capsys, file, tmp_path / "again")
    assert "the same pixels" in printed and str(tmp_path / "runs" / "mine") in printed
    shutil.copytree(world / "ldm", tmp_path / "old" / "mine")
    message = refusal(capsys, sample, reproduce_flags(file, tmp_path / "third"))
    assert "--model" in message and str(tmp_path / "old" / "mine") in message
    shutil.rmtree(tmp_path / "old")
    (tmp_path / "runs").rename(tmp_path / "elsewhere")
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "mine").symlink_to(tmp_path / "elsewhere" / "mine")
    monkeypatch.chdir(tmp_path / "here")
    message = refusal(capsys, sample, reproduce_flags(file, tmp_path / "third"))
    assert "--model" in message and "mine" in message
    assert read_record(file)["hashes"]["unet"] in message


@pytest.mark.parametrize("typed", ["absolute", "relative", "outside"])
def test_records_of_earlier_versions_have_the_path_as_it_was_typed(tmp_path, monkeypatch, typed):
    monkeypatch.chdir(tmp_path)
    for folder in ("a", "b"):
        (tmp_path / folder / "mine").mkdir(parents=True)
        (tmp_path / folder / "mine" / "model_index.json").touch()
    (tmp_path / "mine").mkdir()  # no model
    names = {"absolute": str(tmp_path / "b" / "mine"), "relative": "b/mine"}
    call = RecordedCall(model=names.get(typed, "/nowhere/mine"))
    if typed == "outside":
        with pytest.raises(UserError, match="--model"):
            find_model(call, Path("x.png"))
    else:
        assert find_model(call, Path("x.png")) == tmp_path / "b" / "mine"


def test_a_file_without_a_record_is_refused(tmp_path, capsys, input_image):
    message = refusal(capsys, sample, reproduce_flags(input_image, tmp_path / "out"))
    assert str(input_image) in message and "record" in message


def test_an_error_in_a_record_names_its_file(tmp_path):
    file = tmp_path / "a.png"
    record = {"prompt": "red", "steps": 3, "model": "runs/ldm", "sampler": "magic"}
    file.write_bytes(encode_image(Image.new("RGB", (8, 8)), record))
    with pytest.raises(UserError, match=r"a\.png: .*magic"):
        entries_of_record(file, GenerationOptions())
