"""What the form of the tab Train does with names, paths and files that it must not use."""

import asyncio
import os
import struct
import zlib
from functools import partial

import pytest
import torch

from foundation.errors import UserError
from tests.helpers.images import captioned, picture
from tests.helpers.page.marks import STARTS_PAGE

pytest.importorskip("gradio")
pytestmark = STARTS_PAGE


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


DRAWS = "Draws pictures"


def form(tab, folder, name="", preset="tiny-32", condition="Captions", task=DRAWS, **numbers):
    given = [numbers.get("_".join(key).removesuffix(".py")) for key in tab.numbers]
    return [name, str(folder), preset, condition, task, 0, False, *given]


def test_the_form_becomes_the_commands(tab, tmp_path):
    noise = tmp_path / "data" / "noise"
    clip, vae, ldm = tab.show_command(*form(tab, noise, steps_train_vae=7)).splitlines()
    assert clip.startswith("python train_clip.py") and "--steps" not in clip
    assert "--steps 7" in vae and "--steps" not in ldm
    assert tab.stages_of(*form(tab, noise)).out == tmp_path / "runs" / "noise"


def test_models_without_text_need_no_text_encoder(tab, tmp_path):
    noise = tmp_path / "data" / "noise"
    vae, ldm = tab.show_command(*form(tab, noise, condition="Nothing: images alone")).splitlines()
    assert vae.startswith("python train_vae.py") and "--condition none" in ldm
    task = "Fills what a mask covers"
    *_, ldm = tab.show_command(*form(tab, noise, task=task)).splitlines()
    assert "--task inpaint" in ldm and "--text-encoder" in ldm
    by_class = "Class: the names of the folders, or short captions"
    enlarges = form(tab, noise, condition=by_class, task="Enlarges small pictures")
    for action in (partial(tab.begin, *enlarges, False), partial(tab.show_costs, *enlarges[2:])):
        with pytest.raises(UserError, match="does not go with"):
            action()
    for wrong in ({"condition": "x"}, {"task": "x"}, {"preset": "x"}):
        with pytest.raises(UserError):
            tab.begin(*form(tab, noise, **wrong), False)
    assert not (tmp_path / "runs").exists()


def test_memory_and_time_are_shown_before_the_start(tab, tmp_path):
    kinds = form(tab, "", condition="Nothing: images alone")[2:]
    text = tab.show_costs(*kinds)
    assert "autoencoder" in text and "U-Net" in text and "text encoder" not in text
    assert "estimated" in text and "factor of two" in text
    first = next(tab.compare(*kinds))
    assert "tiny-32" in first and "small-64" not in first and "MB" in first


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


@pytest.fixture
def uploads(tmp_path, monkeypatch):
    """The folder into which the server puts what is sent to it."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))
    return tmp_path / "uploads"


def dropped(*files, names=()):
    names = names or [file.name for file in files]
    sent = [{"name": n, "path": str(f)} for n, f in zip(names, files, strict=True)]
    return {"files": sent}


def test_files_are_dropped_and_captions_corrected(tab, tmp_path, uploads):
    files = [picture(uploads / f"{k}.png", seed=k) for k in range(3)]
    (uploads / "1.txt").write_text("one")
    *_, zone = tab.data.make_folder(dropped(*files, uploads / "1.txt"), "mine")
    assert zone is None and not list(uploads.iterdir())
    target = tmp_path / "data" / "mine"
    before = [("0.png", ()), ("1.png", ("one",)), ("2.png", ())]
    import gradio as gr

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(gr, "Info", lambda text: None)
        tab.data.save_captions(0, str(target), "All", 0, before, "zero", "one\nuno", "")
    assert (target / "0.txt").read_text() == "zero\n"
    assert (target / "1.txt").read_text() == "one\nuno\n"
    assert not (target / "2.txt").exists()


def test_a_folder_is_dropped_with_its_folders(tab, tmp_path, uploads):
    from web.data_panel import suggest_name

    files = [picture(uploads / str(k) / "1.png", seed=k) for k in range(2)]
    value = dropped(*files, names=["birds/red/1.png", "birds/blue/1.png"])
    assert suggest_name(value, "") == "birds" and suggest_name(value, "mine") == "mine"
    tab.data.make_folder(value, "mine")
    target = tmp_path / "data" / "mine"
    found = sorted(file.relative_to(target).as_posix() for file in target.rglob("*.png"))
    assert found == ["blue/1.png", "red/1.png"]


def test_only_files_that_were_sent_are_taken(tab, tmp_path, uploads):
    sent = picture(uploads / "a.png")
    other = picture(tmp_path / "outside" / "secret.png")
    (uploads / "link.png").symlink_to(other)
    inside = os.path.relpath(sent)
    for path in (other, uploads / "link.png", f"{uploads}/../outside/secret.png", uploads, inside):
        with pytest.raises(UserError, match="none that was sent"):
            tab.data.make_folder(dropped(path, names=["a.png"]), "mine")
    for name in ("../a.png", "/etc/a.png", "%2e%2e/a.png", "x/../../a.png", ".x/a.png"):
        with pytest.raises(UserError, match="cannot be taken"):
            tab.data.make_folder(dropped(sent, sent, names=[name, "b.png"]), "mine")
    for value in (None, {}, {"files": []}, [], "x", ["x"], {"files": ["x"]}, {"files": [{}]}):
        with pytest.raises(UserError):
            tab.data.make_folder(value, "mine")
    assert not (tmp_path / "data" / "mine").exists() and other.is_file() and sent.is_file()


def test_an_image_of_too_many_pixels_is_refused(tab, tmp_path, uploads):
    def chunk(kind, content):
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0))
    uploads.mkdir()
    bomb = uploads / "bomb.png"
    bomb.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", b"") + chunk(b"IEND", b""))
    with pytest.raises(UserError, match="pixels"):
        tab.data.make_folder(dropped(bomb), "mine")
    assert not (tmp_path / "data" / "mine").exists()
