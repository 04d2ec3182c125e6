"""The page driven as a person would, in a browser without a window."""

import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from generation.metadata import read_record

pytest.importorskip("gradio")
playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's chromium"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
ROOT = Path(__file__).parents[2]
TIMEOUT = 150_000  # milliseconds


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The address of app.py with the demo weights, and its folder of pictures."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    out = tmp_path_factory.mktemp("pictures")
    command = [sys.executable, "app.py", "--port", str(port), "--out", str(out), "--device", "cpu"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, env=os.environ)
    assert f"127.0.0.1:{port}" in process.stdout.readline()
    yield f"http://127.0.0.1:{port}", out
    process.terminate()
    process.wait(20)


@pytest.fixture
def page(site):
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.set_default_timeout(TIMEOUT)
        page.goto(site[0])
        yield page
        browser.close()


def click_first_picture(page):
    page.locator("button.thumbnail-item:visible, .gallery-item:visible").first.click()
    page.get_by_text("How '").wait_for()


def test_draw_then_read_the_record_then_repaint_a_part(page, site):
    page.get_by_label("Prompt", exact=True).first.fill("red heart")
    page.get_by_role("button", name="Draw", exact=True).click()
    page.get_by_text("Ready: 4 pictures.").wait_for()
    click_first_picture(page)
    page.get_by_role("button", name="Use as start").first.click()
    page.get_by_label("Repaint what is painted").check()
    time.sleep(3)  # the editor loads the picture
    box = page.locator("canvas:visible").first.bounding_box()
    page.get_by_label("Brush", exact=True).first.click()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x - 30, y)
    page.mouse.down()
    page.mouse.move(x + 30, y + 10, steps=8)
    page.mouse.up()
    page.get_by_role("button", name="Change", exact=True).click()
    page.get_by_text("Ready: 4 pictures.").nth(1).wait_for()
    files = sorted(site[1].glob("*.png"))
    assert len(files) == 8
    first, last = read_record(files[0]), read_record(files[-1])
    assert first["prompt"] == last["prompt"] == "red heart"
    assert set(last["files"]) == {"init_image", "mask"}
    assert (site[1] / "inputs" / last["init_image"]).is_file()


def test_wrong_options_are_a_message_and_pictures_survive_a_reload(page, site):
    page.get_by_label("Prompt", exact=True).first.fill("red heart")
    page.get_by_label("Seed", exact=True).first.fill("x")
    page.get_by_label("Keep seed").first.check()
    page.get_by_role("button", name="Draw", exact=True).click()
    page.get_by_text("cannot be read").wait_for()
    before = len(list(site[1].glob("*.png")))
    page.reload()
    page.get_by_text("Earlier pictures").first.click()
    page.locator("button.thumbnail-item:visible, .gallery-item:visible").nth(before - 1).wait_for()
