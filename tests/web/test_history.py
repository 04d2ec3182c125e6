"""Earlier pictures: pictures, videos and grids of the folder, and what can be done with each."""

import os

import pytest

pytest.importorskip("gradio")
pytestmark = pytest.mark.slow  # gradio takes many seconds to load


def test_pictures_videos_and_grids_are_shown_the_newest_first(tmp_path):
    import torch

    from web.open_models import OpenModels
    from web.studio import Studio

    studio = Studio(OpenModels([], tmp_path / "runs", torch.device("cpu")), tmp_path)
    assert studio.earlier() == []
    shown = ["00000.png", "00001.mp4", "grid-0000.png", "00002.gif", "00003.webp", "grid-0001.png"]
    hidden = ["notes.txt", "mine.png", "grid-x.png", "00004.svg", "-1.png", "00005.png.exe"]
    for number, name in enumerate([*shown, *hidden]):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (number, number))
    (tmp_path / "00006.png").symlink_to("/etc/passwd")
    assert [file.name for file in studio.earlier()] == shown[::-1]


def test_only_single_pictures_are_varied_and_changed(tmp_path):
    from web.pictures.results import is_picture

    assert is_picture(tmp_path / "00000.png", {"prompt": "red"})
    assert not is_picture(tmp_path / "00000.gif", {"prompt": "red"})
    assert not is_picture(tmp_path / "00000.mp4", {})
    assert not is_picture(tmp_path / "grid-0000.png", {})
    assert not is_picture(tmp_path / "00001.png", {"grid_x": "steps=1,2"})
    assert not is_picture(tmp_path / "00001.png", {"sides": []})
