"""The tab "Draw" as a person uses it."""

import numpy as np
import pytest
from PIL import Image

from generation.metadata import read_record
from tests.helpers.page.marks import STARTS_PAGE

pytest.importorskip("gradio")
pytestmark = STARTS_PAGE


def pixels(file):
    return np.asarray(Image.open(file).convert("RGB")).astype(float)


def difference(file, other):
    """Return the mean absolute difference of two pictures."""
    return np.abs(pixels(file) - pixels(other)).mean()


def drop_on_form(visitor, file):
    visitor.drop(visitor.panel.locator("button:visible", has_text="Drop File Here").first, file)


def test_a_click_shows_the_record_and_again_draws_the_same_picture(visitor):
    visitor.set_call("red heart", seed=7, steps=2, pictures=2)
    first = visitor.run("Draw")
    assert [read_record(file)["seed"] for file in first] == [7, 8]
    assert visitor.status.inner_text().strip() == "Ready: 2 pictures."
    visitor.click_picture(2)
    visitor.panel.get_by_text(f"How '{first[1].name}' was drawn").wait_for()
    assert '"prompt": "red heart"' in visitor.panel.locator(".cm-content").first.inner_text()
    visitor.type("Prompt", "something else")
    visitor.button("Again with these options").click()
    visitor.wait_for_value("Prompt", "red heart")
    assert visitor.field("Seed").input_value() == "8"
    assert visitor.number("Pictures") == 1
    [again] = visitor.run("Draw")
    assert np.array_equal(pixels(again), pixels(first[1]))
    assert not np.array_equal(pixels(again), pixels(first[0]))
    assert read_record(again) == read_record(first[1])


def test_variations_are_like_the_picture_that_was_clicked(visitor):
    visitor.set_call("animal", seed=7, steps=8, pictures=2)
    visitor.set_number("Guidance scale", 1)
    first, other = visitor.run("Draw")
    visitor.click_picture(1)
    visitor.panel.get_by_text(f"How '{first.name}'").wait_for()
    variations = visitor.run("Variations")
    assert visitor.status.inner_text().strip() == "Ready: 4 pictures."
    assert len(variations) == 4
    for file in variations:
        assert 0 < difference(file, first) < difference(other, first)
        assert read_record(file)["variation"] > 0
    visitor.panel.get_by_text(f"How '{first.name}'").wait_for(state="hidden")  # of another call
    assert visitor.button("Variations").is_disabled()
    assert visitor.panel.locator(".thumbnail-lg:visible").count() == 4  # none is shown large


def test_a_new_seed_for_each_call_unless_it_is_kept(visitor):
    visitor.set_call("red heart", seed=7, steps=1)
    visitor.button("New seed").click()
    visitor.wait_until(lambda: visitor.field("Seed").input_value() != "7")
    rolled = visitor.field("Seed").input_value()
    [kept] = visitor.run("Draw")
    assert visitor.field("Seed").input_value() == rolled
    assert read_record(kept)["seed"] == int(rolled)
    assert visitor.field("Keep seed").is_checked()
    visitor.field("Keep seed").uncheck()
    [new] = visitor.run("Draw")
    assert read_record(new)["seed"] != int(rolled)
    assert visitor.field("Seed").input_value() == str(read_record(new)["seed"])
    visitor.field("Keep seed").check()
    [same] = visitor.run("Draw")
    assert np.array_equal(pixels(same), pixels(new))


def test_what_is_finished_stays_when_a_call_is_stopped(visitor):
    visitor.set_call("red heart", seed=1, steps=5, pictures=16)
    visitor.new_files()
    visitor.watch()
    visitor.button("Draw").click()
    visitor.wait_until(visitor.unseen)  # the first batch is written
    visitor.button("Stop").click()
    status = visitor.wait_for_status("Stopped.")
    finished = visitor.new_files()
    assert 0 < len(finished) < 16 and f"{len(finished)} pictures are finished" in status
    visitor.panel.locator(".thumbnail-lg:visible").nth(len(finished) - 1).wait_for()
    visitor.click_picture(len(finished))
    visitor.panel.get_by_text(f"How '{finished[-1].name}' was drawn").wait_for()
    visitor.set_number("Steps", 1)
    visitor.set_number("Pictures", 1)
    assert len(visitor.run("Draw")) == 1  # the page draws as before


def test_a_dropped_picture_fills_the_form_and_is_drawn_again(visit):
    visitor = visit()
    visitor.set_call("blue heart", seed=11, steps=3)
    visitor.type("Negative prompt", "red")
    visitor.set_number("Guidance scale", 6)
    visitor.choose("Sampler", "euler")
    visitor.panel.get_by_text("More options").first.click()
    visitor.type("Width", "48")
    visitor.set_number("Guidance rescale", 0.3)
    visitor.set_number("Guide to noise level", 0.9)
    [file] = visitor.run("Draw")
    assert Image.open(file).size == (48, 64)
    other = visit()
    drop_on_form(other, file)
    other.wait_for_value("Prompt", "blue heart")
    assert other.field("Negative prompt").input_value() == "red"
    assert other.field("Seed").input_value() == "11" and other.field("Keep seed").is_checked()
    assert other.field("Sampler").input_value() == "euler"
    numbers = [other.number(label) for label in ("Pictures", "Steps", "Guidance scale")]
    assert numbers == [1, 3, 6]
    other.panel.get_by_text("More options").first.click()
    assert other.field("Width").input_value() == "48"
    assert other.field("Height").input_value() == ""
    assert other.number("Guidance rescale") == 0.3
    assert other.number("Guide to noise level") == 0.9
    [again] = other.run("Draw")
    assert np.array_equal(pixels(again), pixels(file))
    assert read_record(again) == read_record(file)


def test_a_picture_without_record_is_refused_in_words(visitor, tmp_path):
    Image.new("RGB", (64, 64), "red").save(tmp_path / "photo.png")
    drop_on_form(visitor, tmp_path / "photo.png")
    assert "photo.png" in visitor.read_message("does not say how it was made")
    assert visitor.field("Prompt").input_value() == ""
    visitor.field("Prompt").click(trial=True)  # no mark of the error covers the form


def test_pictures_are_still_there_after_a_reload(visitor):
    visitor.set_call("red heart", seed=3, steps=1, pictures=2)
    *_, last = visitor.run("Draw")
    visitor.page.reload()
    visitor.button("Draw").wait_for()
    visitor.panel.get_by_text("Earlier pictures").first.click()
    visitor.panel.locator(".thumbnail-lg:visible").nth(1).wait_for()
    visitor.click_picture(1)
    visitor.panel.get_by_text(f"How '{last.name}' was drawn").wait_for()
    visitor.button("Again with these options").click()
    visitor.wait_for_value("Prompt", "red heart")
    assert visitor.field("Seed").input_value() == "4"


def test_the_negative_prompt_changes_the_picture(visitor):
    visitor.set_call("heart", seed=5, steps=3)
    [plain] = visitor.run("Draw")
    visitor.type("Negative prompt", "red heart")
    [away] = visitor.run("Draw")
    assert read_record(away)["negative_prompt"] == "red heart"
    assert difference(plain, away) > 1
    assert "--negative-prompt 'red heart'" in visitor.panel.locator(".cm-content").last.inner_text()


def test_wrong_options_are_a_message_that_names_the_field(visitor):
    visitor.type("Prompt", "red heart")
    visitor.type("Seed", "x")
    visitor.field("Keep seed").check()
    visitor.new_files()
    visitor.button("Draw").click()
    assert '"seed"' in visitor.read_message("cannot be read").lower()
    visitor.type("Seed", "1")
    visitor.panel.get_by_text("More options").first.click()
    visitor.type("Width", "33")
    visitor.button("Draw").click()
    assert "33" in visitor.read_message("33")
    assert not visitor.new_files()


def test_the_keyboard_alone_draws(visitor):
    keyboard = visitor.page.keyboard
    keyboard.type("red heart")  # the page begins in the prompt
    assert visitor.field("Prompt").input_value() == "red heart"
    keyboard.press("Enter")  # a prompt may have several lines
    assert visitor.field("Prompt").input_value() == "red heart\n"
    keyboard.press("Backspace")
    visitor.new_files()
    visitor.set_number("Steps", 1)
    visitor.set_number("Pictures", 1)
    visitor.field("Prompt").focus()
    visitor.watch()
    keyboard.press("Shift+Enter")
    visitor.wait_for_status("Ready: 1 picture.")
    keyboard.press("Tab")
    assert visitor.field("Negative prompt").evaluate("field => field == document.activeElement")
    keyboard.press("Tab")
    assert visitor.button("Draw").evaluate("button => button == document.activeElement")
    visitor.watch()
    keyboard.press("Enter")
    visitor.wait_for_status("Ready: 1 picture.")
    assert [read_record(file)["prompt"] for file in visitor.new_files()] == ["red heart"] * 2
