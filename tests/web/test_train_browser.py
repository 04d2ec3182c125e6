"""Training on the page as a person would, in a browser without a window."""

import json
from pathlib import Path

import pytest

from generation.metadata import read_record
from tests.helpers.images import captioned, picture
from tests.helpers.page.marks import STARTS_PAGE
from training.tools.background import stop_training
from training.tools.run_folders import find_running
from training.tools.sequence import read_state

pytest.importorskip("gradio")
pytestmark = STARTS_PAGE


@pytest.fixture
def folder(tmp_path):
    captioned(tmp_path / "data" / "noise", 40)
    picture(tmp_path / "data" / "noise" / "new.png", seed=99)
    yield tmp_path
    for run in find_running(tmp_path / "runs"):
        stop_training(run)


def fill_form(page, *steps, name="first"):
    page.get_by_label("Name", exact=True).fill(name)
    page.get_by_label("Preset").click()
    page.get_by_role("option", name="tiny-32").click()
    page.get_by_text("More options").last.click()
    for stage, count in steps:
        page.get_by_label(f"Steps: {stage}").fill(str(count))
        if stage != "autoencoder":
            page.get_by_label(f"Images per step: {stage}").fill("16")


def open_tab(page, tab):
    page.get_by_role("tab", name=tab, exact=True).click()
    return page


def test_from_a_folder_to_a_picture(start_app, open_page, wait_until, folder):
    app = start_app(folder=folder)
    page = open_tab(open_page(app.address), "Train")
    page.get_by_label("Data folder").fill("/etc")
    page.get_by_role("button", name="Open", exact=True).click()
    page.get_by_text("does not lie in a folder").first.wait_for()
    page.get_by_label("Data folder").fill(str(folder / "data" / "noise"))
    page.get_by_role("button", name="Open", exact=True).click()
    page.get_by_text("without caption").first.wait_for()
    fill_form(page, ("text encoder", 20), ("autoencoder", 2000), ("U-Net", 20))
    page.get_by_role("button", name="Start", exact=True).click()
    page.get_by_text("1 images have no caption").first.wait_for()  # refused, and nothing is written
    assert not (folder / "runs").exists()
    page.get_by_label("Without caption").check()
    page.get_by_text("new.png").first.wait_for()
    page.locator("textarea:visible").first.fill("a new picture")
    page.get_by_role("button", name="Save captions").click()
    page.get_by_text("captions of 1 image are saved").first.wait_for()
    rows = (folder / "data" / "noise" / "metadata.jsonl").read_text().splitlines()
    assert json.loads(rows[-1]) == {"file_name": "new.png", "text": "a new picture"}
    page.get_by_role("button", name="Start", exact=True).click()
    page.get_by_text("stage 2 of 3").first.wait_for()
    vae = folder / "runs" / "first" / "vae"
    wait_until(lambda: (vae / "metrics.jsonl").exists() and (vae / "metrics.jsonl").stat().st_size)
    page.locator(".run-charts:visible polyline").first.wait_for()
    app.stop()  # the training survives the page
    assert find_running(folder / "runs") == [vae]
    page = open_tab(open_page(start_app(folder=folder).address), "Train")
    page.get_by_text("stage 2 of 3").first.wait_for()
    page.get_by_role("button", name="Stop", exact=True).last.click()
    wait_until(lambda: read_state(folder / "runs" / "first").name == "stopped")
    assert list((vae / "state").iterdir())
    shorten(folder / "runs" / "first", vae)
    page.get_by_role("button", name="Go on").click()
    wait_until(lambda: read_state(folder / "runs" / "first").name == "finished")
    page.get_by_text("Later step").wait_for()
    page.get_by_text("From left to right: averaged weights, weights of this step.").wait_for()
    figures = page.locator(".run-previews:visible figure")
    assert figures.count() == 1  # of the one image that is held out, with its caption
    assert figures.locator("figcaption").inner_text() in {
        row["text"] for row in map(json.loads, rows)
    }
    assert figures.locator("img").count() == 2
    page.get_by_role("button", name="Draw with it").first.click()
    steps = page.get_by_label("number input for Steps").locator("visible=true")
    steps.fill("2")
    steps.press("Tab")
    page.get_by_role("button", name="Draw", exact=True).click()
    page.get_by_text("Ready: 4 pictures.").wait_for()
    records = [read_record(file) for file in (folder / "out").glob("*.png")]
    assert {Path(record["model"]).name for record in records} == {"ldm"}
    look_at_runs(page)


def test_a_folder_is_dropped_and_trained_by_class(start_app, open_page, wait_until, drop, folder):
    shapes = folder / "shapes"
    for k in range(40):
        picture(shapes / ("round", "square")[k % 2] / f"{k}.png", seed=k)
    (shapes / "readme.md").write_text("no data")
    page = open_tab(open_page(start_app(folder=folder).address), "Train")
    page.get_by_text("Drop files or a folder").click()
    drop(page, page.locator(".drop-zone"), shapes)
    page.get_by_text("40 files in 2 folders").wait_for()
    page.get_by_text("1 left out, of other kinds or hidden: shapes/readme.md").wait_for()
    extra = [picture(folder / "shapes" / "round" / f"{k}.png", seed=k) for k in (98, 99)]
    page.locator(".drop-clear").click()
    page.locator(".drop-input-folder").set_input_files(shapes)  # chosen, not dropped
    page.get_by_text("42 files in 2 folders").wait_for()
    name = page.get_by_label("Name of the new data folder")
    wait_until(lambda: name.input_value() == "shapes")
    page.get_by_role("button", name="Make a data folder").click()
    page.get_by_text("captions from").first.wait_for()
    made = {
        file.relative_to(folder / "data") for file in (folder / "data" / "shapes").rglob("*.png")
    }
    assert len(made) == 42 and Path("shapes/round", extra[0].name) in made
    page.get_by_label("It reads").click()
    page.get_by_role("option", name="Class").click()
    page.get_by_text("You draw by the name of a class").wait_for()
    fill_form(page, ("autoencoder", 2000), ("U-Net", 20), name="classes")
    page.locator("#costs").get_by_text("together").wait_for()
    assert "text encoder" not in page.locator("#costs").inner_text()
    page.get_by_role("button", name="Start", exact=True).click()
    page.get_by_text("stage 1 of 2").first.wait_for()
    vae = folder / "runs" / "classes" / "vae"
    wait_until(lambda: (vae / "metrics.jsonl").exists())
    page.get_by_text("Compare the presets").click()
    page.locator("#presets").get_by_text("tiny-32").wait_for()


def test_files_are_chosen_and_become_a_data_folder(start_app, open_page, folder):
    files = [picture(folder / "files" / f"{k}.png", seed=k) for k in range(3)]
    (folder / "files" / "1.txt").write_text("number one")
    page = open_tab(open_page(start_app(folder=folder).address), "Train")
    page.get_by_text("Drop files or a folder").click()
    page.locator(".drop-input-files").set_input_files([*files, folder / "files" / "1.txt"])
    page.get_by_text("4 files, ").wait_for()
    page.get_by_label("Name of the new data folder").fill("../mine")
    page.get_by_role("button", name="Make a data folder").click()
    page.get_by_text("cannot be the name of a data folder").first.wait_for()
    page.get_by_label("Name of the new data folder").fill("mine")
    page.get_by_role("button", name="Make a data folder").click()
    page.get_by_text("3 images").first.wait_for()
    assert (folder / "data" / "mine" / "1.txt").read_text() == "number one"
    assert page.locator(".drop-said").inner_text() == ""


def shorten(sequence, vae):
    """Let the second training end where it is, so that the test does."""
    step = max(int(state.name.removeprefix("step-")) for state in (vae / "state").iterdir())
    file = sequence / "sequence.json"
    content = json.loads(file.read_text())
    command = content["commands"][1]
    command += ["--override", f"steps={step + 20}"]
    file.write_text(json.dumps(content))


def look_at_runs(page):
    page.get_by_role("tab", name="Runs").click()
    page.locator("#run-list").get_by_text("first/clip").wait_for()
    assert page.locator("#run-list .badge.finished").count() == 3
    page.get_by_label("Look at a run").click()
    for name in ("first/clip", "first/vae", "first/ldm"):
        option = page.get_by_role("option", name=name)
        if option.get_attribute("aria-selected") != "true":
            option.click()
    page.locator(".run-charts:visible svg").first.wait_for()
