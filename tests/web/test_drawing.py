"""Drawing for the page: the same files as sample.py, progress, and an end when it is asked for."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dataset.images.decode import read_frames
from generation.metadata import read_record
from generation.options import GenerationOptions
from generation.prompts import PromptEntry
from generation.video import Animation
from tests.helpers.sample_runs import run_sample
from web.drawing import MOST_FRAMES, MOST_IMAGES, DrawCall, VideoCall, images_of
from web.model_lists import find_models
from web.open_models import MOST_OPEN, ModelChoice, OpenAutoencoders, OpenModels

CPU = torch.device("cpu")


def open_world(world):
    return OpenModels([world / "ldm"], world / "no-runs", CPU)


def open_session(world):
    models = open_world(world)
    return models.open(ModelChoice(models.names()[0]))


def draw_call(world, folder, **options):
    session = open_session(world)
    entry = PromptEntry("red", GenerationOptions(**options))
    return DrawCall(session, images_of(entry), folder)


def test_the_page_draws_what_sample_py_draws(world, tmp_path):
    flags = ("--steps", 3, "--seed", 7, "--count", 2, "--batch-size", 1)
    expected = run_sample(world, tmp_path / "script", *flags)
    *_, last = draw_call(world, tmp_path / "page", steps=3, seed="7", count=2)
    assert len(last.files) == 2 and last.done == last.total and not last.previews
    for file, other in zip(last.files, expected, strict=False):
        assert Image.open(file).tobytes() == Image.open(other).tobytes()
        mine, theirs = read_record(file), read_record(other)
        assert mine == {k: v for k, v in theirs.items() if k != "batch_size"}


def test_a_call_that_is_stopped_ends_before_its_last_step(world, tmp_path):
    call = draw_call(world, tmp_path, steps=100, count=3)
    real, seen = call._count, []

    def count(calls):
        seen.append(calls)
        if len(seen) == 2:
            call.stop.set()
        real(calls)

    call._count = count
    *_, last = call
    assert len(seen) == 2 and not last.files and last.done < last.total


def test_batches_that_are_finished_stay_when_a_call_is_stopped(world, tmp_path):
    call = draw_call(world, tmp_path, steps=2, count=12)  # a batch of 8, and one of 4
    real, done = call._count, []

    def count(calls):
        done.append(calls)
        if len(done) == 3:
            call.stop.set()
        real(calls)

    call._count = count
    *_, last = call
    assert done == [8, 8, 4] and last.done < last.total
    assert [read_record(file)["seed"] for file in last.files] == list(range(8))


def test_previews_come_in_the_order_of_the_images(world, tmp_path, monkeypatch):
    monkeypatch.setattr("web.drawing.PREVIEW_INTERVAL", 0.0)
    updates = list(draw_call(world, tmp_path, steps=2, count=2))
    assert any(len(update.previews) == 2 for update in updates)
    assert all(update.seconds_left is None or update.seconds_left >= 0 for update in updates)


def test_an_error_while_drawing_reaches_the_page(world, tmp_path, monkeypatch):
    call = draw_call(world, tmp_path, steps=2)

    def fail(calls):
        raise FloatingPointError("not finite")

    monkeypatch.setattr(call, "_count", fail)
    with pytest.raises(FloatingPointError, match="not finite"):
        list(call)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"count": MOST_IMAGES + 1}, str(MOST_IMAGES)),
        ({"steps": 0}, "0"),
        ({"sampler": "nothing"}, "nothing"),
        ({"width": 33}, "33"),
        ({"seed": "x"}, "x"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_drawn(world, tmp_path, options, words):
    with pytest.raises(ValueError, match=words):
        draw_call(world, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_only_models_of_the_list_are_opened(world, tmp_path):
    for name in ("a", "b"):
        (tmp_path / "runs" / name / "model").mkdir(parents=True)
        (tmp_path / "runs" / name / "model" / "model_index.json").write_text(json.dumps({}))
    (tmp_path / "runs" / "unfinished").mkdir()
    (tmp_path / "runs" / "linked").symlink_to(world / "ldm")  # leads out of the folder
    names = list(find_models([world / "ldm"], tmp_path / "runs"))
    runs = [(tmp_path / "runs" / name).as_posix() for name in ("a", "b")]
    assert names == [(world / "ldm").as_posix(), *runs]
    models = OpenModels([world / "ldm"], tmp_path / "runs", CPU)
    assert models.open(ModelChoice(names[0])) is models.open(ModelChoice(names[0]))
    for name in ("", "..", str(world / "vae"), f"{names[0]}/../vae", str(tmp_path / "runs")):
        with pytest.raises(ValueError, match="there is no model"):
            models.open(ModelChoice(name))
    assert len(models.opened) <= MOST_OPEN


def test_a_video_is_the_one_that_sample_py_draws(world, tmp_path):
    flags = ("--steps", 2, "--seed", "3,5", "--interpolate", 2)
    [expected] = run_sample(world, tmp_path / "script", *flags, "--batch-size", 1)
    images = [
        image
        for seed in ("3", "5")
        for image in images_of(
            PromptEntry("red", GenerationOptions(steps=2, seed=seed), has_own_seed=True)
        )
    ]
    call = VideoCall(Animation(open_session(world), images, 2, "gif", 12.0), tmp_path / "page")
    *_, last = call
    [file] = last.files
    assert last.done == last.total and not last.previews
    frames = [list(read_frames(each)) for each in (file, expected)]
    assert len(frames[0]) == 3 and np.array_equal(*frames)
    mine, theirs = read_record(file), read_record(expected)
    assert mine == {k: v for k, v in theirs.items() if k != "batch_size"}


def test_a_video_that_is_stopped_writes_nothing(world, tmp_path):
    images = images_of(PromptEntry("red", GenerationOptions(steps=5, seed="3,5")))
    animation = Animation(open_session(world), images, 4, "gif", 12.0)
    call = VideoCall(animation, tmp_path)
    call.stop.set()
    *_, last = call
    assert not last.files and last.done < last.total and not list(tmp_path.iterdir())


def test_long_videos_are_left_to_sample_py(world, tmp_path):
    models = open_world(world)
    images = images_of(PromptEntry("red", GenerationOptions(seed="3,5")))
    animation = Animation(
        models.open(ModelChoice(models.names()[0])), images, MOST_FRAMES, "gif", 12.0
    )
    with pytest.raises(ValueError, match=str(MOST_FRAMES)):
        VideoCall(animation, tmp_path)


def test_a_picture_of_another_model_is_recognized(world):
    models = open_world(world)
    name = models.names()[0]
    assert models.has_drawn(name, "ldm", {}) and not models.has_drawn(name, "other", {})
    hashes = models.open(ModelChoice(name)).hashes  # from here on they decide
    assert models.has_drawn(name, "copy", {**hashes, "weak_model": "0"})
    assert not models.has_drawn(name, "ldm", {**hashes, "unet": "0"})


def test_autoencoders_of_runs_and_models_are_offered(world, tmp_path):
    models = OpenModels([world / "ldm"], world, CPU)
    opened = OpenAutoencoders(models)
    names = [Path(name).name for name in opened.names()]
    assert "vae" in names and "ldm" in names and "clip" not in names and "data" not in names
    autoencoder, pixels = opened.open((world / "vae").as_posix())
    assert pixels.eight_bit and opened.open((world / "vae").as_posix())[0] is autoencoder
    for name in ("", "..", str(tmp_path), f"{world.as_posix()}/ldm/../vae"):
        with pytest.raises(ValueError, match="no autoencoder"):
            opened.open(name)
