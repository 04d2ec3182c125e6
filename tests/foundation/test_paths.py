"""Names and paths of other systems, told on any system."""

from pathlib import Path, PureWindowsPath
from types import SimpleNamespace

import pytest

from dataset.index_files import index_folder
from dataset.stores.remote import RemoteFile, is_remote, restore_slashes
from foundation import paths, system
from foundation.errors import UserError
from foundation.files import ROOM_IN_MODEL, atomic_folder, write_text
from foundation.paths import check_new_path, common_folder, is_below, name_problem
from generation.names import FileNames
from training.config_json import to_json
from training.run import Run, make_folder


@pytest.fixture
def on_windows(monkeypatch):
    monkeypatch.setattr(system, "ON_WINDOWS", True)


@pytest.mark.parametrize(
    "name",
    ["CON", "nul.txt", "com1", "LPT9.png", "a.", "a ", "a:b", "a?", 'a"', "a\\b", "", "\a"],
)
def test_names_that_some_system_does_not_take(name):
    assert name_problem(name)


@pytest.mark.parametrize("name", ["a", "console", "com", "com10", ".hidden", "a b", "ä.png", "a.b"])
def test_names_that_every_system_takes(name):
    assert name_problem(name) == ""


@pytest.mark.parametrize("name", ["aux", "12:30", "run."])
def test_nothing_is_written_under_such_a_name_on_windows(tmp_path, on_windows, name):
    shown = name.replace(".", r"\.")
    with pytest.raises(UserError, match=shown):
        Run(tmp_path / name, {"seed": 0})
    with pytest.raises(UserError, match=shown):
        write_text(tmp_path / name / "file", "text")
    with pytest.raises(UserError, match=shown), atomic_folder(tmp_path / "deep" / name):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("setting", [0, 1])
def test_a_path_that_windows_does_not_take_is_refused_before_anything_is_written(
    tmp_path, on_windows, monkeypatch, setting
):
    """Names inside need room; with the setting for long paths there is no limit."""
    library = SimpleNamespace(RtlAreLongPathsEnabled=lambda: setting)
    monkeypatch.setattr(system.ctypes, "WinDLL", lambda name: library, raising=False)
    lengths = {
        "run": paths.LONGEST_PATH - paths.ROOM,
        "file": paths.LONGEST_PATH - len("..partial"),
    }
    fits = {kind: tmp_path / ("a" * (n - len(str(tmp_path)) - 1)) for kind, n in lengths.items()}
    longer = {kind: path.with_name(path.name + "a") for kind, path in fits.items()}
    write_text(fits["file"], "text")
    make_folder(fits["run"])
    if setting:
        return write_text(longer["file"], "text")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(UserError, match=r"160 characters.* 100 more.*259"):
        Run(longer["run"], {"seed": 0})
    with pytest.raises(UserError, match=r"251 characters.*259"):
        write_text(longer["file"], "text")
    with pytest.raises(UserError, match="259"):
        FileNames(fits["run"] / "b", "c" * 90, [".png"]).check([{}])
    assert sorted(tmp_path.iterdir()) == before


def test_the_longest_names_of_a_model_have_room():
    assert len("/model") + ROOM_IN_MODEL <= paths.ROOM
    assert len("/state/step-0000500") + ROOM_IN_MODEL <= paths.ROOM + len("/.unet.partial")


def test_elsewhere_they_are_names_as_any_other(tmp_path):
    write_text(tmp_path / "12:30" / "aux", "text")
    assert (tmp_path / "12:30" / "aux").exists()


def test_the_root_and_the_way_up_are_no_names(on_windows):
    check_new_path(Path("/data/../runs/./a"))


def test_the_common_folder_of_absolute_and_relative_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert common_folder([tmp_path / "a" / "b", Path("a/c")]) == tmp_path / "a"
    assert common_folder([Path("a/b"), Path("a/c")]) == Path("a")


def test_files_on_two_drives_are_refused(monkeypatch):
    def commonpath(given):
        raise ValueError("Paths don't have the same drive")

    monkeypatch.setattr(paths.os.path, "commonpath", commonpath)
    with pytest.raises(UserError, match=r"drives.*one\.tar"):
        common_folder([Path("one.tar"), Path("two.tar")])


def test_the_case_of_a_drive_does_not_matter_and_that_of_a_folder_elsewhere_does():
    assert is_below("c:/Data/a.png", "C:/data")
    assert is_below("/data/a.png", "/data")
    assert not is_below("/Data/a.png", "/data")
    assert not is_below("/database/a.png", "/data")


def test_a_url_survives_a_path_of_windows():
    url = "s3://bucket/shards/{000..099}.tar"
    assert restore_slashes(str(PureWindowsPath(url))) == url
    assert is_remote(str(PureWindowsPath(url)))
    assert not is_remote("C:\\data\\shards") and not is_remote("C:/data/shards")


def test_paths_in_a_config_have_slashes_on_every_system():
    assert to_json({"data": Path("data") / "mine"}) == {"data": "data/mine"}


def test_the_index_of_a_store_with_a_port_has_a_name_on_windows(on_windows, tmp_path, monkeypatch):
    monkeypatch.setenv("LATENTSMITH_INDEX", str(tmp_path))
    check_new_path(index_folder(RemoteFile("http://127.0.0.1:9000")))
