"""Two users of one server at the same time: each gets pictures of their own, and "Stop" is theirs.

The events are called as the page in a browser calls them, through the queue of the server.
"""

import time
from pathlib import Path

import httpx
import pytest

from generation.metadata import read_record
from tests.helpers.page.marks import STARTS_PAGE
from tests.helpers.page.user import User, in_editor, upload

pytest.importorskip("gradio")
pytestmark = STARTS_PAGE
STOPPED = "Stopped. 0 pictures are finished."
MANY = {"Steps": 100, "Pictures": 16}


@pytest.fixture
def users(address):
    config = httpx.get(f"{address}/config", timeout=60).json()
    return [User(address, f"{name}{time.time_ns()}", config) for name in ("anna", "ben")]


def pictures_of(folder, prompt):
    """The pixels of the pictures of a prompt, by seed."""
    found = {}
    for file in Path(folder).glob("*.png"):
        record = read_record(file)
        if record["prompt"] == prompt:
            found.setdefault(record["seed"], []).append(file.read_bytes())
    return found


def test_two_users_get_the_pictures_that_they_get_alone(address, users, picture_folder):
    settings = [
        {"Prompt": "two users, red", "Seed": "5", "Pictures": 3},
        {"Prompt": "two users, blue", "Seed": "900", "Pictures": 2},
    ]
    common = {"Steps": 4, "Keep_seed": True}
    for user, values in zip(users, settings, strict=True):  # one after the other
        user.press("Draw", **values, **common)
        assert "Ready: " in user.finish()
    for user, values in zip(users, settings, strict=True):  # at once
        user.press("Draw", **values, **common)
    for user in users:
        assert "Ready: " in user.finish()
    for values in settings:
        found = pictures_of(picture_folder, values["Prompt"])
        first = int(values["Seed"])
        assert sorted(found) == list(range(first, first + values["Pictures"]))
        # The record, too, is the same, so the files are.
        assert all(len(files) == 2 and files[0] == files[1] for files in found.values())
    # Each was shown only pictures of their own seeds.
    for user, other in (users, users[::-1]):
        own, others = ({f"seed {n}" for n in seeds} for seeds in ((5, 6, 7), (900, 901)))
        if user is users[1]:
            own, others = others, own
        text = user.texts()
        assert all(f'"{seed}"' in text for seed in own), (user.name, other.name)
        assert not any(f'"{seed}"' in text for seed in others)


def test_a_call_that_waits_is_stopped_and_the_other_one_goes_on(users):
    anna, ben = users
    anna.press("Draw", Prompt="anna", **MANY)
    anna.wait_for("Step ")
    ben.press("Draw", Prompt="ben", **MANY)
    ben.wait_for("Waiting: 1 call is before this one.")
    ben.press("Stop")
    assert STOPPED in ben.finish()
    before = len(anna.messages)
    anna.wait_for("Step ")
    assert "Stopped" not in anna.texts() and before <= len(anna.messages)
    anna.press("Stop", place=1)  # that of another tab does not end it
    time.sleep(1)
    assert anna.thread.is_alive() and "Stopped" not in anna.texts()
    anna.press("Stop")
    assert "Stopped. " in anna.finish()


def test_who_is_stopped_makes_room_for_the_next(users):
    anna, ben = users
    anna.press("Draw", Prompt="anna", **MANY)
    anna.wait_for("Step ")
    ben.press("Draw", Prompt="ben", Steps=1, Pictures=1)
    ben.wait_for("Waiting: 1 call is before this one.")
    anna.press("Stop")
    assert "Stopped. " in anna.finish()
    assert "Ready: 1 picture." in ben.finish()


@pytest.mark.parametrize(
    ("button", "place"),
    [("Change", 1), ("Draw the video", 2), ("Compare", 3), ("Reconstruct", 4)],
)
def test_every_tab_stops_what_waits(address, world, users, button, place):
    anna, ben = users
    anna.press("Draw", Prompt="anna", **MANY)
    anna.wait_for("Step ")
    uploaded = upload(address, next((world / "data").glob("*.png")))
    picture = uploaded if button == "Reconstruct" else in_editor(uploaded)
    ben.press(button, Picture=picture, Compare="Grid over options")
    ben.wait_for("Waiting: 1 call is before this one.")
    ben.press("Stop", place)
    assert "Stopped. " in ben.finish()
    anna.press("Stop")
    assert "Stopped. " in anna.finish()


def test_who_closes_the_page_makes_room_for_the_next(users):
    anna, ben = users
    anna.press("Draw", listens=False, Prompt="anna", **MANY)
    with anna.stream() as stream:
        assert any("Step " in line for line in stream.iter_lines())  # up to the first of them
    ben.press("Draw", Prompt="ben", Steps=1, Pictures=1)
    assert "Ready: 1 picture." in ben.finish()
