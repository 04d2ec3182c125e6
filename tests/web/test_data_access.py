"""Data folders of the page: only those below the allowed ones, whatever somebody writes."""

import os

import pytest
from PIL import Image

from foundation.errors import UserError
from tests.helpers.images import captioned, picture
from web.data_access import ALL, UNUSABLE, WITHOUT, AllowedFolders, read_view, thumbnail


@pytest.fixture
def allowed(tmp_path):
    captioned(tmp_path / "data" / "birds", 3)
    captioned(tmp_path / "other", 2)
    (tmp_path / "data" / ".hidden").mkdir()
    return AllowedFolders([tmp_path / "data"])


def test_folders_below_the_allowed_ones_are_found(allowed, tmp_path, monkeypatch):
    birds = tmp_path / "data" / "birds"
    assert allowed.names() == [birds.as_posix()]
    assert allowed.find(str(birds)) == birds
    assert allowed.find(f" {birds}/../birds ") == birds
    monkeypatch.chdir(tmp_path)
    assert AllowedFolders([tmp_path / "data"]).find("data/birds") == birds


@pytest.mark.parametrize(
    "name",
    [
        *("/etc", "/", "..", "other", "data/../other", "data/birds/../../other", "~", "a\0b"),
        *("%2e%2e/other", "data/%2e%2e/other", "..\\other", "/proc/self/cwd", "data/birds" * 200),
        *("", "   ", "data/../data/../other", "file:///etc", "//etc", "shards/{000..099}.tar"),
    ],
)
def test_all_other_folders_are_refused(allowed, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError):
        allowed.find(name)


def test_what_lies_outside_is_not_told(allowed, tmp_path):
    messages = []
    for name in ("other", "nothing"):
        with pytest.raises(UserError) as error:
            allowed.find(path := str(tmp_path / name))
        messages.append(str(error.value).replace(path, ""))
    assert messages[0] == messages[1]


def test_links_that_lead_out_are_refused_and_others_are_not(allowed, tmp_path):
    data = tmp_path / "data"
    (data / "link").symlink_to(tmp_path / "other")
    with pytest.raises(UserError, match="does not lie in"):
        allowed.find(str(data / "link"))
    assert (data / "link").as_posix() not in allowed.names()
    (data / "birds" / "again.png").symlink_to(data / "birds" / "000.png")
    assert allowed.find(str(data / "birds"))
    (data / "near").symlink_to(data / "birds")
    assert allowed.find(str(data / "near")) == data / "birds"
    inner = data / "birds" / "deep"
    inner.mkdir()
    (inner / "secret.png").symlink_to(tmp_path / "other" / "000.png")
    with pytest.raises(UserError, match="leads out"):
        allowed.find(str(data / "birds"))
    os.remove(inner / "secret.png")
    (inner / "folder").symlink_to(tmp_path / "other")
    with pytest.raises(UserError, match="leads out"):
        allowed.find(str(data / "birds"))


@pytest.mark.parametrize("name", ["", "..", "a/b", "/tmp/x", ".x", "-x", "a\\b", "x" * 61, "con"])
def test_new_folders_have_plain_names(allowed, name):
    with pytest.raises(UserError, match="cannot be the name"):
        allowed.new(name)
    assert allowed.new("red birds").name == "red birds"


def test_images_are_listed_with_captions_and_reasons(tmp_path):
    root = tmp_path / "data"
    for k in range(3):
        picture(root / f"{k}.png", seed=k)
    (root / "1.txt").write_text("one\n")
    (root / "broken.png").write_bytes(b"no image")
    view = read_view(root)
    assert [view.count(which) for which in (ALL, WITHOUT, UNUSABLE)] == [4, 2, 1]
    first, second = view.items(ALL, 0, 2)
    assert (first.name, first.captions, first.problem) == ("0.png", (), "")
    assert second.captions == ("one",) and second.can_be_edited
    *_, last = view.items(ALL, 2, 2)
    assert last.name == "broken.png" and last.problem and not last.can_be_edited
    assert [item.name for item in view.items(WITHOUT, 0, 9)] == ["0.png", "2.png"]
    assert [item.name for item in view.items(UNUSABLE, 0, 9)] == ["broken.png"]
    assert thumbnail(first.path).startswith("data:image/jpeg;base64,")
    assert thumbnail(root / "broken.png") == ""


def test_the_limit_of_the_page_is_not_that_of_data_folders(tmp_path, monkeypatch):
    """What a training can read must not be written into the index as too large."""
    picture(tmp_path / "a.png", size=(40, 40))
    picture(tmp_path / "b.png", seed=1, size=(40, 40))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
    view = read_view(tmp_path)
    assert not view.folder.unusable
    assert Image.MAX_IMAGE_PIXELS == 500
