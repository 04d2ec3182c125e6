"""From picture to picture, as a GIF or an MP4, and the same again from that file."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import sample
from generation.metadata import read_record
from generation.video import gif, mp4
from tests.generation.test_sample import drawn
from tests.helpers.bad_calls import refusal

FILM = ("--steps", 2, "--interpolate", 3, "--seed", "1,2")
RECORD = {"prompt": "ein café 🎈", "seed": 2**63 - 1, "stations": [{"prompt": "x" * 70000}]}


def frames(count: int) -> list[Image.Image]:
    return [Image.new("RGB", (32, 16), (20 * k, 100, 200)) for k in range(count)]


def frames_of(file: Path) -> list[np.ndarray]:
    with Image.open(file) as film:
        arrays = []
        for k in range(film.n_frames):
            film.seek(k)
            arrays.append(np.asarray(film.convert("RGB")).astype(int))
    return arrays


def again(capsys, file: Path, out: Path, *flags: object) -> str:
    capsys.readouterr()
    given = ("--from-png", file, "--out", out, "--device", "cpu", *flags)
    sample.main([str(word) for word in given])
    return capsys.readouterr().out


def test_an_animation_goes_from_picture_to_picture_and_is_made_again(world, tmp_path, capsys):
    (file,) = drawn(world, tmp_path / "first", *FILM, "--fps", 8, prompts=["green"])
    shown = frames_of(file)
    assert len(shown) == 3 * 3 + 1  # red 1, red 2, green 1, green 2
    assert all(np.abs(a - b).mean() > 0 for a, b in pairwise(shown))
    (first,) = drawn(world, tmp_path / "ends", "--steps", 2, "--seed", 1)
    with Image.open(first) as picture:
        assert np.abs(shown[0] - np.asarray(picture)).mean() < 10  # of 256 colors
    record = read_record(file)
    assert set(record["hashes"]) == {"unet", "autoencoder", "text_encoder"}
    stations = [(station["prompt"], station["seed"]) for station in record["stations"]]
    assert stations == [("red", 1), ("red", 2), ("green", 1), ("green", 2)]
    assert f"the same pixels as {file}" in again(capsys, file, tmp_path / "again")
    assert (tmp_path / "again" / "00000.gif").read_bytes() == file.read_bytes()


def test_other_frames_than_those_of_the_file_are_told(world, tmp_path, capsys):
    (file,) = drawn(world, tmp_path / "first", *FILM)
    record = read_record(file)
    file.write_bytes(gif(frames(len(frames_of(file))), 12, record))
    flags = ["--from-png", str(file), "--out", str(tmp_path / "again"), "--device", "cpu"]
    assert "the pixels differ from those of" in refusal(capsys, sample, flags)
    file.write_bytes(gif(frames(2), 12, {"a": "comment of another program"}))
    assert "does not say how it was made" in refusal(capsys, sample, flags)


@pytest.mark.parametrize("write", [gif, mp4])
def test_records_come_back(tmp_path, write):
    pytest.importorskip("av")
    file = tmp_path / f"film.{write.__name__}"
    file.write_bytes(write(frames(3), 8, RECORD))
    assert read_record(file) == RECORD


def test_an_mp4_holds_the_frames_and_is_made_again(world, tmp_path, capsys):
    av = pytest.importorskip("av")
    (tmp_path / "film.mp4").write_bytes(mp4(frames(5), 8, RECORD))
    with av.open(str(tmp_path / "film.mp4")) as film:
        decoded = [frame.to_ndarray(format="rgb24") for frame in film.decode(video=0)]
    assert len(decoded) == 5
    for k, frame in enumerate(decoded):
        assert np.abs(frame.mean(axis=(0, 1)) - (20 * k, 100, 200)).max() < 6
    with pytest.raises(ValueError, match="even sides, not 31x16"):
        mp4([Image.new("RGB", (31, 16))], 8, RECORD)
    (file,) = drawn(world, tmp_path / "first", *FILM, "--video", "mp4")
    assert "not compared" in again(capsys, file, tmp_path / "again")
    assert read_record(tmp_path / "again" / "00000.mp4") == read_record(file)
    file.write_bytes(b"no film")
    flags = ["--from-png", str(file), "--out", str(tmp_path / "third")]
    assert "cannot be read as a film" in refusal(capsys, sample, flags)


def test_without_pyav_an_mp4_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    for call in (
        lambda: mp4(frames(2), 8, RECORD),
        lambda: read_record(tmp_path / "film.mp4"),
    ):
        with pytest.raises(ValueError, match=r"pip install 'latentsmith\[video\]'.*--video gif"):
            call()
    assert gif(frames(2), 8, RECORD).startswith(b"GIF89a")


def test_what_an_animation_cannot_be_is_refused(refused):
    refused(sample, "goes from picture to picture.*Give several", "--interpolate", 3)
    refused(sample, "--fps is for --interpolate", "--fps", 3)
    flags = ("--interpolate", 3, "--seed", "1,2")
    refused(sample, "at most 50 frames per second, not 60", *flags, "--fps", 60)
    refused(sample, "--video is for --interpolate", "--video", "mp4")


def test_flags_that_the_file_says_are_refused(world, tmp_path, capsys):
    (file,) = drawn(world, tmp_path / "first", *FILM)
    flags = ["--from-png", str(file), "--out", str(tmp_path / "again"), "--interpolate", "2"]
    assert "--from-png takes --interpolate from the file" in refusal(capsys, sample, flags)
