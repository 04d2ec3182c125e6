"""The tab "Change" as a person uses it."""

import numpy as np
import pytest
from PIL import Image, ImageDraw

from dataset.images.decode import read_frames
from generation.metadata import read_record
from tests.helpers.page.marks import STARTS_PAGE

pytest.importorskip("gradio")
pytestmark = STARTS_PAGE
SIDE = 64  # pixels of the demo's pictures
BLUE = (30, 60, 200)


@pytest.fixture
def start(tmp_path):
    """A blue picture with an orange disk."""
    picture = Image.new("RGB", (SIDE, SIDE), BLUE)
    ImageDraw.Draw(picture).ellipse((20, 20, 44, 44), fill=(240, 150, 20))
    picture.save(tmp_path / "start.png")
    return tmp_path / "start.png"


@pytest.fixture
def changer(visitor):
    """Somebody who has opened the tab."""
    visitor.open_tab("Change")
    return visitor


def pixels(file):
    return np.asarray(Image.open(file).convert("RGB")).astype(float)


def psnr(picture, other):
    return 10 * np.log10(255**2 / max(np.square(picture - other).mean(), 1e-9))


def canvas(changer):
    return changer.panel.locator("canvas:visible").first


def is_near(colors, color):
    return np.abs(colors.astype(int) - color).max(axis=-1) < 25


def put(changer, file, color=BLUE):
    """Put a picture into the editor, and wait until it is shown."""
    changer.panel.get_by_text("Upload an image").wait_for()
    changer.panel.locator("input[type=file]").first.set_input_files(file)
    wait_for_color(changer, color)


def wait_for_color(changer, color):
    """Wait until the editor shows some of a color."""
    changer.wait_until(lambda: is_near(changer.look(canvas(changer)), color).mean() > 0.005)


def test_a_picture_is_drawn_anew_as_much_as_the_strength_says(changer, start):
    put(changer, start)
    changer.set_call("red heart", seed=1, steps=4)
    results = []
    for strength in (0.25, 1):
        changer.set_number("Strength", strength)
        [file] = changer.run("Change")
        record = read_record(file)
        assert record["strength"] == strength
        kept = changer.pictures / "inputs" / record["init_image"]
        assert np.array_equal(pixels(kept), pixels(start))
        results.append(psnr(pixels(file), pixels(start)))
    assert results[0] > results[1] + 3
    assert "--init-image" in changer.panel.locator(".cm-content").last.inner_text()


def test_only_what_is_painted_is_drawn_anew(changer, start):
    put(changer, start)
    changer.panel.get_by_label("Repaint what is painted").check()
    changer.set_call("red heart", seed=1, steps=4)
    changer.button("Change").click()
    changer.read_message("nothing is painted")
    paint_across(changer)
    [file] = changer.run("Change")
    mask = pixels(changer.pictures / "inputs" / read_record(file)["mask"])[..., 0] > 127
    assert 0.02 < mask.mean() < 0.5
    rows, columns = np.nonzero(mask)
    assert abs(rows.mean() - SIDE / 2) < 4 and abs(columns.mean() - SIDE / 2) < 4
    assert np.ptp(columns) > np.ptp(rows)  # it was painted from left to right
    drawn, before = pixels(file), pixels(start)
    assert psnr(drawn[~mask], before[~mask]) > 45
    assert psnr(drawn[mask], before[mask]) < 30


def paint_across(changer):
    """Paint a stroke through the middle of the picture."""
    changer.panel.get_by_label("Brush", exact=True).first.click()
    box = canvas(changer).bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    mouse = changer.page.mouse
    mouse.move(x - 60, y)
    mouse.down()
    mouse.move(x + 60, y, steps=12)
    mouse.up()
    wait_for_color(changer, (255, 45, 85))


def test_a_picture_is_extended(changer, start):
    put(changer, start)
    changer.panel.get_by_label("Extend").check()
    changer.set_call("red heart", seed=1, steps=3)
    changer.button("Change").click()
    changer.read_message("cannot grow by 0, 0, 0, 0")
    changer.type("Left", "16")
    changer.type("Bottom", "32")
    [file] = changer.run("Change")
    assert Image.open(file).size == (SIDE + 16, SIDE + 32)
    assert psnr(pixels(file)[:SIDE, 16:], pixels(start)) > 45
    assert read_record(file)["outpaint"] == [16, 0, 0, 32]


def test_a_picture_is_enlarged(changer, start):
    put(changer, start)
    changer.panel.get_by_label("Enlarge").check()
    changer.set_call("orange disk", seed=1, steps=4)
    [file] = changer.run("Change")
    large = Image.open(file)
    assert large.size == (2 * SIDE, 2 * SIDE)
    small = np.asarray(large.convert("RGB").resize((SIDE, SIDE))).astype(float)
    assert psnr(small, pixels(start)) > 15  # the same scene
    changer.choose("Times as large", "4")
    changer.set_number("Steps", 1)
    [file] = changer.run("Change")
    assert Image.open(file).size == (4 * SIDE, 4 * SIDE)


def test_a_picture_is_edited_by_description(changer, visit):
    drawer = visit()
    drawer.set_call("red heart", seed=7, steps=8)
    [before] = drawer.run("Draw")
    put(changer, before, color=(200, 20, 30))
    changer.panel.get_by_label("Edit by description").check()
    changer.type("What the picture shows", "red heart")
    changer.set_call("blue heart", seed=7, steps=8)
    [file] = changer.run("Change")
    record = read_record(file)
    assert record["source_prompt"] == "red heart" and record["prompt"] == "blue heart"
    shift = (pixels(file) - pixels(before)).mean(axis=(0, 1))
    assert shift[2] > shift[0] + 5  # more blue, less red


def test_without_a_picture_it_says_so(changer):
    changer.new_files()
    changer.set_call("red heart", seed=1, steps=1)
    for way in ("Draw it anew", "Repaint what is painted", "Extend", "Enlarge"):
        changer.panel.get_by_label(way).check()
        changer.button("Change").click()
        assert "there is no picture" in changer.read_message("there is no picture")
    assert not changer.new_files()


def test_a_picture_goes_from_draw_to_change_with_its_prompt(visitor):
    visitor.set_call("red heart", seed=7, steps=8)
    [first] = visitor.run("Draw")
    visitor.click_picture(1)
    visitor.panel.get_by_text(f"How '{first.name}'").wait_for()
    visitor.button("Use as start").click()
    visitor.button("Change").wait_for()
    assert visitor.field("Prompt").input_value() == "red heart"
    wait_for_color(visitor, (200, 20, 30))
    visitor.set_call("blue heart", seed=1, steps=2)
    [file] = visitor.run("Change")
    kept = visitor.pictures / "inputs" / read_record(file)["init_image"]
    assert np.array_equal(pixels(kept), pixels(first))


def test_a_video_leads_from_one_picture_to_another(changer, visit):
    drawer = visit()
    drawer.set_call("red heart", seed=7, steps=2)
    [begin] = drawer.run("Draw")
    drawer.set_call("blue heart", seed=5, steps=2)
    [end] = drawer.run("Draw")
    changer.page.get_by_role("tab", name="A video between two").click()
    texts = "red heart", "blue heart"
    for place, file in enumerate((begin, end)):
        zone = changer.panel.locator("button:visible", has_text="Drop File Here").first
        changer.drop(zone, file)
        changer.wait_for_value(("From: prompt", "To: prompt")[place], texts[place])
    changer.wait_for_value("To: seed", "5")
    assert changer.field("From: seed").input_value() == "7" and changer.number("Steps") == 2
    changer.set_number("Frames between the two", 3)
    changer.new_files()
    changer.button("Draw the video").click()
    changer.panel.get_by_text("4 frames.").wait_for()
    [file] = changer.new_files()
    frames = list(read_frames(file))
    assert len(frames) == 4
    stations = [(each["prompt"], each["seed"]) for each in read_record(file)["stations"]]
    assert stations == [("red heart", 7), ("blue heart", 5)]
    changer.panel.locator(".moving img:visible").wait_for()
    [prompts] = (changer.pictures / "inputs").glob("*.jsonl")
    assert f"--prompts {prompts}" in changer.panel.locator(".cm-content:visible").last.inner_text()
