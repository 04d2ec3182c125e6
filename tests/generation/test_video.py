"""Videos from image to image, as GIF or MP4, and reproduced from their file."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from jaxtyping import Int
from PIL import Image

import sample
from dataset.images.pixel_format import PIXELS_KEY, PixelFormat
from foundation.errors import UserError
from generation.metadata import read_record
from generation.video import encode_gif, encode_mp4
from ldm import TextToImage
from tests.helpers.bad_calls import refusal
from tests.helpers.random_models import smooth_image
from tests.helpers.sample_runs import reproduce, reproduce_flags, run_sample

VIDEO = ("--steps", 2, "--interpolate", 3, "--seed", "1,2")
RECORD = {"prompt": "red"}


def make_frames(count: int) -> list[Image.Image]:
    return [Image.new("RGB", (32, 16), (20 * k, 100, 200)) for k in range(count)]


def frames_of(file: Path) -> list[Int[np.ndarray, "h w 3"]]:
    with Image.open(file) as video:
        frames = []
        for k in range(video.n_frames):
            video.seek(k)
            frames.append(np.asarray(video.convert("RGB")).astype(int))
    return frames


def test_a_gif_goes_from_image_to_image_and_is_reproduced(world, tmp_path, capsys):
    prompts = ("red", "green")
    (file,) = run_sample(world, tmp_path / "first", *VIDEO, "--fps", 8, prompts=prompts)
    frames = frames_of(file)
    assert len(frames) == 3 * 3 + 1  # red 1, red 2, green 1, green 2
    assert all(np.abs(a - b).mean() > 0 for a, b in pairwise(frames))
    (first,) = run_sample(world, tmp_path / "ends", "--steps", 2, "--seed", 1)
    with Image.open(first) as image:
        assert np.abs(frames[0] - np.asarray(image)).mean() < 10  # of 256 colors
    record = read_record(file)
    assert set(record["hashes"]) == {"unet", "autoencoder", "text_encoder"}
    keyframes = [(entry["prompt"], entry["seed"]) for entry in record["stations"]]
    assert keyframes == [("red", 1), ("red", 2), ("green", 1), ("green", 2)]
    assert f"the same pixels as {file}" in reproduce(
        capsys, file, tmp_path / "again", "--model", world / "ldm"
    )
    assert (tmp_path / "again" / "00000.gif").read_bytes() == file.read_bytes()


def test_other_frames_than_those_of_the_file_are_an_error(world, tmp_path, capsys):
    (file,) = run_sample(world, tmp_path / "first", *VIDEO)
    file.write_bytes(encode_gif(make_frames(len(frames_of(file))), 12, read_record(file)))
    flags = reproduce_flags(file, tmp_path / "again", "--model", world / "ldm")
    message = refusal(capsys, sample, flags)
    assert str(file) in message and "pixels" in message


def test_an_mp4_holds_the_frames(tmp_path):
    av = pytest.importorskip("av")
    (tmp_path / "video.mp4").write_bytes(encode_mp4(make_frames(5), 8, RECORD))
    with av.open(str(tmp_path / "video.mp4")) as video:
        decoded = [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]
    assert len(decoded) == 5
    for k, frame in enumerate(decoded):
        assert np.abs(frame.mean(axis=(0, 1)) - (20 * k, 100, 200)).max() < 6
    with pytest.raises(UserError, match="31x16"):
        encode_mp4([Image.new("RGB", (31, 16))], 8, RECORD)


def test_an_mp4_is_reproduced(world, tmp_path, capsys):
    pytest.importorskip("av")
    (file,) = run_sample(world, tmp_path / "first", *VIDEO, "--video", "mp4")
    assert "not compared" in reproduce(capsys, file, tmp_path / "again", "--model", world / "ldm")
    assert read_record(tmp_path / "again" / "00000.mp4") == read_record(file)
    file.write_bytes(b"no video")
    message = refusal(capsys, sample, reproduce_flags(file, tmp_path / "third"))
    assert str(file) in message


def test_without_pyav_an_mp4_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    for call in (
        lambda: encode_mp4(make_frames(2), 8, RECORD),
        lambda: read_record(tmp_path / "video.mp4"),
    ):
        with pytest.raises(UserError, match=r"pip install av\b.*--video gif"):
            call()
    assert encode_gif(make_frames(2), 8, RECORD).startswith(b"GIF89a")


def test_videos_that_cannot_be_made_are_refused(refused):
    refused(sample, "--interpolate.*1", "--interpolate", 3)
    refused(sample, "--fps.*--interpolate", "--fps", 3)
    refused(sample, "50.*60", "--interpolate", 3, "--seed", "1,2", "--fps", 60)
    refused(sample, "--video.*--interpolate", "--video", "mp4")


def test_flags_that_the_record_sets_are_refused(world, tmp_path, capsys):
    (file,) = run_sample(world, tmp_path / "first", *VIDEO)
    flags = reproduce_flags(file, tmp_path / "again", "--model", world / "ldm")
    assert "--interpolate" in refusal(capsys, sample, [*flags, "--interpolate", "2"])
    assert "--save-latents" in refusal(capsys, sample, [*flags, "--save-latents"])


def test_a_video_from_a_picture_needs_a_model_of_8_bits(world, tmp_path_factory, refused):
    """Input pictures are read with 8 bits. A model of 16 bits would see them as black."""
    folder = tmp_path_factory.mktemp("deep")
    provenance = {PIXELS_KEY: PixelFormat("uint16", 0, 65535).describe()}
    TextToImage.load(world / "ldm").save(folder / "model", provenance)
    smooth_image().save(folder / "picture.png")
    flags = ("--model", folder / "model", "--init-image", folder / "picture.png", "-n", 2)
    refused(sample, "8 bits.*uint16", *flags, "--interpolate", 2)
    refused(sample, "8 bits.*uint16", *flags)
