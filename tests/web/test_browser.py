"""The page driven as a person would, in a browser without a window."""

import time

import pytest
from PIL import Image

from generation.metadata import read_record

pytest.importorskip("gradio")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(scope="module")
def site(start_app, tmp_path_factory):
    """The address of app.py with the demo weights, and its folder of pictures."""
    out = tmp_path_factory.mktemp("pictures")
    return start_app("--out", str(out)).address, out


@pytest.fixture
def page(site, open_page):
    return open_page(site[0])


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


def open_tab(page, name):
    """Go to a tab, and return the part of the page that it shows."""
    page.get_by_role("tab", name=name, exact=True).click()
    return page.locator("[role=tabpanel]:visible").first


def set_number(panel, label, value, place=0):
    field = panel.get_by_label(f"number input for {label}").nth(place)
    field.fill(str(value))
    field.press("Tab")


def test_two_settings_and_a_grid_are_compared(page, site):
    panel = open_tab(page, "Compare")
    panel.get_by_label("Prompt", exact=True).fill("red heart")
    set_number(panel, "Pictures", 2)
    for place in (0, 1):
        set_number(panel, "Steps", 3, place)
    set_number(panel, "Guidance scale", 8, 1)
    panel.get_by_role("button", name="Compare", exact=True).click()
    panel.get_by_text("Ready: 4 pictures, and grid-").wait_for()
    first = sorted(site[1].glob("grid-*.png"))[-1]
    sides = read_record(first)["sides"]
    assert [side["guidance_scale"] for side in sides] == [4, 8]
    assert panel.locator(".cm-line").filter(has_text="sample.py").count() == 2
    panel.get_by_label("Grid over options").check()
    values = panel.get_by_label("Values, with commas between them")
    values.nth(0).fill("1, 4")
    values.nth(1).fill("2, three")
    panel.get_by_role("button", name="Compare", exact=True).click()
    page.get_by_text("must be a whole number").wait_for()
    values.nth(1).fill("2, 3")
    panel.get_by_role("button", name="Compare", exact=True).click()
    panel.get_by_text("Ready: 4 pictures, and grid-0001.png with labels.").wait_for()
    record = read_record(sorted(site[1].glob("grid-*.png"))[-1])
    assert (record["grid_x"], record["grid_y"]) == ("guidance_scale=1, 4", "steps=2, 3")
    assert panel.get_by_text("--grid-x").count() == 1


def test_a_picture_is_reconstructed(page, site, tmp_path):
    Image.effect_noise((96, 80), 60).convert("RGB").save(tmp_path / "noise.png")
    panel = open_tab(page, "Autoencoder")
    panel.locator("input[type=file]").first.set_input_files(tmp_path / "noise.png")
    panel.get_by_label("Clear").or_(panel.get_by_label("Remove Image")).first.wait_for()
    panel.get_by_label("Strengths of the noise").fill("0.2, 0.8")
    panel.get_by_role("button", name="Reconstruct", exact=True).click()
    panel.get_by_text("PSNR").first.wait_for()
    panel.get_by_text("noise 0.8: ").first.wait_for()
    assert panel.locator("svg[role=img] circle").count() == 3
    assert panel.get_by_text("Difference x 4").count() == 1
    command = panel.locator(".cm-content").last.inner_text()
    assert "evaluate.py reconstruct checkpoints/demo" in command and "0.8" in command


def test_a_video_between_two_prompts_is_drawn(page, site):
    panel = open_tab(page, "Change")
    page.get_by_role("tab", name="A video between two").click()
    panel.get_by_label("From: prompt").fill("red heart")
    panel.get_by_label("To: prompt").fill("blue heart")
    panel.get_by_label("To: seed").fill("5")
    set_number(panel, "Frames between the two", 3)
    steps = panel.get_by_label("number input for Steps").locator("visible=true")
    steps.fill("2")
    steps.press("Tab")
    panel.get_by_role("button", name="Draw the video").click()
    panel.get_by_text("4 frames.").wait_for()
    [file] = site[1].glob("*.gif")
    stations = read_record(file)["stations"]
    assert [(each["prompt"], each["seed"]) for each in stations] == [
        ("red heart", 0),
        ("blue heart", 5),
    ]
    [prompts] = (site[1] / "inputs").glob("*.jsonl")
    assert f"--prompts {prompts}" in panel.locator(".cm-content:visible").last.inner_text()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_tab_fits_on_a_phone(site, open_page, scheme):
    page = open_page(site[0], 390, 844, color_scheme=scheme)
    page.get_by_role("button", name="Draw", exact=True).wait_for()
    dark = page.evaluate("document.body.classList.contains('dark')")
    assert dark == (scheme == "dark")
    for name in ("Draw", "Change", "Compare", "Autoencoder", "Train", "Runs"):
        tab = page.get_by_role("tab", name=name, exact=True)
        if not tab.is_visible():  # the last ones are in a menu
            page.locator(".overflow-menu > button:visible").first.click()
            tab = page.locator(".overflow-dropdown button", has_text=name)
        tab.click()
        page.wait_for_timeout(500)
        width = page.evaluate("document.documentElement.scrollWidth")
        assert width <= 390, f"{name} is {width} pixels wide"
