"""The tab "Compare" as a person uses it."""

import numpy as np
import pytest
from PIL import Image

from generation.metadata import read_record
from tests.helpers.page.marks import STARTS_PAGE

pytest.importorskip("gradio")
pytestmark = STARTS_PAGE
ENLARGED = 3  # times, in pictures with labels
SIDE = 64 * ENLARGED  # pixels there of the demo's pictures


@pytest.fixture
def comparer(visitor):
    """Somebody who has opened the tab."""
    visitor.open_tab("Compare")
    return visitor


def split(files):
    """Return the picture with labels, and the others in the order of their names."""
    [whole] = [file for file in files if file.name.startswith("grid-")]
    return whole, sorted(file for file in files if file != whole)


def contains(whole, file):
    """Return whether a picture, three times as large, is a part of another, pixel by pixel."""
    large, small = (np.asarray(Image.open(each).convert("RGB")) for each in (whole, file))
    small = small.repeat(ENLARGED, axis=0).repeat(ENLARGED, axis=1)
    height, width = small.shape[:2]
    windows = np.lib.stride_tricks.sliding_window_view(large[..., 0], (height, width))
    places = np.argwhere((windows[..., ::7, ::7] == small[::7, ::7, 0]).all(axis=(-2, -1)))
    return any(np.array_equal(large[y : y + height, x : x + width], small) for y, x in places)


def commands(comparer):
    lines = comparer.panel.locator(".cm-line").filter(has_text="sample.py")
    return lines.all_inner_texts()


def test_two_settings_are_compared_with_the_same_seeds(comparer):
    comparer.set_call("red heart", seed=3, steps=2, pictures=2)
    comparer.set_number("Steps", 3, place=1)
    comparer.set_number("Guidance scale", 8, place=1)
    files = comparer.run("Compare", "Ready: 4 pictures, and grid-")
    whole, parts = split(files)
    records = [read_record(file) for file in parts]
    assert [record["seed"] for record in records] == [3, 4, 3, 4]
    assert [record["guidance_scale"] for record in records] == [4, 4, 8, 8]
    assert [record["steps"] for record in records] == [2, 2, 3, 3]
    assert all(contains(whole, file) for file in parts)
    width, height = Image.open(whole).size
    assert 2 * SIDE < width < 4 * SIDE and 2 * SIDE < height < 4 * SIDE
    assert [side["guidance_scale"] for side in read_record(whole)["sides"]] == [4, 8]
    left, right = commands(comparer)
    assert "--steps 2" in left and "--steps 3" in right and "--guidance-scale 8" in right
    labels = comparer.panel.locator(".caption-label:visible").all_inner_texts()
    assert [" ".join(label.split()) for label in labels[:4]] == [
        *("left, seed 3", "right, seed 3", "left, seed 4", "right, seed 4"),
    ]


def test_the_settings_of_the_left_are_copied_to_the_right(comparer):
    comparer.set_number("Steps", 7)
    comparer.choose("Sampler", "euler")
    comparer.button("Set as on the left").click()
    comparer.wait_for_value("number input for Steps", "7", place=1)
    assert comparer.field("Sampler", 1).input_value() == "euler"


def test_a_grid_has_a_picture_for_each_pair_of_values(comparer):
    comparer.panel.get_by_label("Grid over options").check()
    comparer.type("Prompt", "red heart")
    comparer.type("Seed", "3")
    comparer.field("Keep seed").check()
    values = "Values, with commas between them"
    comparer.type(values, "1, 4, 8")
    comparer.type(values, "2, three", place=1)
    comparer.new_files()
    comparer.button("Compare").click()
    comparer.read_message("must be a whole number")
    assert not comparer.new_files()
    comparer.type(values, "2, 3", place=1)
    whole, parts = split(comparer.run("Compare", "Ready: 6 pictures, and grid-"))
    pairs = [(read_record(file)["guidance_scale"], read_record(file)["steps"]) for file in parts]
    assert pairs == [(1, 2), (4, 2), (8, 2), (1, 3), (4, 3), (8, 3)]
    assert {read_record(file)["seed"] for file in parts} == {3}
    assert all(contains(whole, file) for file in parts)
    width, height = Image.open(whole).size
    assert 3 * SIDE < width < 5 * SIDE and 2 * SIDE < height < 4 * SIDE
    record = read_record(whole)
    assert (record["grid_x"], record["grid_y"]) == ("guidance_scale=1, 4, 8", "steps=2, 3")
    [command] = commands(comparer)
    assert "--grid-x" in command and "--grid-y" in command
    shown = comparer.panel.locator("img[src*='grid-']:visible").first
    assert shown.evaluate("image => [image.naturalWidth, image.naturalHeight]") == [width, height]


def test_pictures_that_are_finished_stay_when_a_grid_is_stopped(comparer):
    comparer.panel.get_by_label("Grid over options").check()
    comparer.type("Prompt", "red heart")
    values = "Values, with commas between them"
    comparer.type(values, "2, 4, 8")
    comparer.type(values, "1, 100", place=1)
    comparer.new_files()
    comparer.watch()
    comparer.button("Compare").click()
    captions = comparer.panel.locator(".caption-label:visible")
    comparer.wait_until(lambda: captions.count() > 3)  # the second row has begun
    comparer.button("Stop").click()
    status = comparer.wait_for_status("Stopped.")
    files = comparer.new_files()
    assert 3 <= len(files) < 6 and f"{len(files)} pictures are finished" in status
    assert not any(file.name.startswith("grid-") for file in files)
