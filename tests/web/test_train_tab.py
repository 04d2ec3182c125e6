"""What the form of the tab Train does with names, paths and files that it must not use."""

import asyncio
import struct
import zlib

import pytest
import torch

from foundation.errors import UserError
from tests.helpers.images import captioned, picture

pytest.importorskip("gradio")
pytestmark = [
    pytest.mark.slow,  # gradio takes many seconds to load
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture
def tab(tmp_path):
    import gradio as gr

    from web.open_models import OpenModels
    from web.studio import Studio
    from web.train_tab import TrainTab

    captioned(tmp_path / "data" / "noise", 40)
    captioned(tmp_path / "outside", 3)
    models = OpenModels([], tmp_path / "runs", torch.device("cpu"))
    loop = asyncio.new_event_loop()  # gradio would make one, and leave it open
    asyncio.set_event_loop(loop)
    with gr.Blocks():
        tab = TrainTab(Studio(models, tmp_path / "out", [tmp_path / "data"]), gr.Dropdown())
        with gr.Tabs() as tabs, gr.Tab("Train") as one:
            tab.build(one, tabs)
    yield tab
    loop.close()
    asyncio.set_event_loop(None)


def form(tab, folder, name="", preset="tiny-32", condition="Captions", **numbers):
    given = [numbers.get("_".join(key).removesuffix(".py")) for key in tab.numbers]
    return [name, str(folder), preset, condition, 0, False, *given]


def test_the_form_becomes_the_commands(tab, tmp_path):
    noise = tmp_path / "data" / "noise"
    clip, vae, ldm = tab.show_command(*form(tab, noise, steps_train_vae=7)).splitlines()
    assert clip.startswith("python train_clip.py") and "--steps" not in clip
    assert "--steps 7" in vae and "--steps" not in ldm
    assert tab.stages_of(*form(tab, noise)).out == tmp_path / "runs" / "noise"


@pytest.mark.parametrize("name", ["../x", "/tmp/x", "a/b", ".x", "--help", "a\0b", "%2e%2e/x\n"])
def test_names_cannot_lead_elsewhere(tab, tmp_path, name):
    with pytest.raises(UserError, match="cannot be the name"):
        tab.begin(*form(tab, tmp_path / "data" / "noise", name), False)
    assert not (tmp_path / "runs").exists()


def test_other_folders_are_not_read(tab, tmp_path):
    for folder in (tmp_path / "outside", "/etc", tmp_path / "data" / ".." / "outside"):
        for action in (tab.begin, tab.show_needs):
            with pytest.raises(UserError, match="does not lie in"):
                action(*form(tab, folder), *([False] if action == tab.begin else []))
        with pytest.raises(UserError, match="does not lie in"):
            tab.data.save_captions(0, str(folder), "All", 0, [("000.png", ("x",))], "y")
    assert "000.png" in (tmp_path / "outside" / "metadata.jsonl").read_text()
    for name in ("../outside", "", None, "noise"):
        with pytest.raises(UserError, match="no training is chosen"):
            tab.draw_with(name)


def test_too_few_images_are_said_before_the_start(tab, tmp_path):
    with pytest.raises(UserError, match="fewer than one batch of 256"):
        tab.begin(*form(tab, tmp_path / "data" / "noise", preset="small-64"), False)
    (tmp_path / "data" / "empty").mkdir()
    with pytest.raises(UserError, match="no images"):
        tab.begin(*form(tab, tmp_path / "data" / "empty"), False)
    assert not (tmp_path / "runs").exists()


def test_files_are_dropped_and_captions_corrected(tab, tmp_path):
    files = [picture(tmp_path / "drop" / f"{k}.png", seed=k) for k in range(3)]
    (tmp_path / "drop" / "1.txt").write_text("one")
    tab.data.make_folder([*map(str, files), str(tmp_path / "drop" / "1.txt")], "mine")
    target = tmp_path / "data" / "mine"
    before = [("0.png", ()), ("1.png", ("one",)), ("2.png", ())]
    import gradio as gr

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(gr, "Info", lambda text: None)
        tab.data.save_captions(0, str(target), "All", 0, before, "zero", "one\nuno", "")
    assert (target / "0.txt").read_text() == "zero\n"
    assert (target / "1.txt").read_text() == "one\nuno\n"
    assert not (target / "2.txt").exists()


def test_an_image_of_too_many_pixels_is_refused(tab, tmp_path):
    def chunk(kind, content):
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0))
    bomb = tmp_path / "bomb.png"
    bomb.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", b"") + chunk(b"IEND", b""))
    with pytest.raises(UserError, match="pixels"):
        tab.data.make_folder([str(bomb)], "mine")
    assert not (tmp_path / "data" / "mine").exists()
