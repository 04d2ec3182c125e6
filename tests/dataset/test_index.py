"""The index: a second start decodes nothing, and after changes only changed files are decoded."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from dataset import index, parallel
from dataset.folder import Folder, folder_fingerprint, read_folder
from dataset.table import COLUMNS
from tests.helpers.images import captioned, picture, truncated, write_metadata


@pytest.fixture
def decoded(monkeypatch) -> list[str]:
    """Return a list that gets the name of every image that is decoded."""
    names = []
    inspect = index.inspect_image

    def recording(path: Path):
        names.append(path.name)
        return inspect(path)

    monkeypatch.setattr(index, "inspect_image", recording)
    return names


def all_facts(folder: Folder) -> tuple:
    columns = [folder.pairs.column(name).tolist() for name in COLUMNS]
    return folder.rule, list(folder.pairs), columns, folder.modes, folder.unusable, folder.notes


def test_a_second_start_decodes_nothing_and_gives_the_same(tmp_path, decoded):
    captioned(tmp_path, 5)
    truncated(tmp_path / "cut.jpg")
    (tmp_path / "metadata.csv").write_text("file_name,text\n")
    first = read_folder(tmp_path, allow_missing_captions=True)
    assert sorted(decoded) == [*(f"{k:03d}.png" for k in range(5)), "cut.jpg"]
    decoded.clear()
    second = read_folder(tmp_path, allow_missing_captions=True)
    assert decoded == []
    assert all_facts(first) == all_facts(second)
    assert first.unusable and first.notes
    assert isinstance(second.pairs.table.columns["sha256"], np.memmap)


def test_only_changed_files_are_decoded_again(tmp_path, decoded):
    captioned(tmp_path, 5)
    before = read_folder(tmp_path)
    decoded.clear()
    picture(tmp_path / "001.png", seed=77)
    os.utime(tmp_path / "002.png", ns=(5, 5))
    (tmp_path / "003.png").unlink()
    picture(tmp_path / "new.png")
    rows = [{"file_name": f"{k}.png", "text": "x"} for k in ("000", "001", "002", "004", "new")]
    write_metadata(tmp_path, rows)
    after = read_folder(tmp_path)
    assert sorted(decoded) == ["001.png", "002.png", "new.png"]
    assert [pair.captions for pair in after.pairs] == [("x",)] * 5
    hashes = [folder.pairs.column("sha256").tolist() for folder in (before, after)]
    assert [a == b for a, b in zip(*hashes, strict=True)] == [True, False, True, False, False]
    assert len(list((tmp_path / ".latentsmith").iterdir())) == 1


def test_the_index_is_valid_after_its_folder_was_moved(tmp_path, decoded):
    captioned(tmp_path / "old", 3)
    truncated(tmp_path / "old" / "cut.jpg")
    read_folder(tmp_path / "old", allow_missing_captions=True)
    decoded.clear()
    (tmp_path / "old").rename(tmp_path / "new")
    moved = read_folder(tmp_path / "new", allow_missing_captions=True)
    assert decoded == []
    assert moved.unusable[0].path == tmp_path / "new" / "cut.jpg"
    assert moved.pairs[2].path == tmp_path / "new" / "002.png"


def test_a_repaired_image_is_used_again(tmp_path):
    captioned(tmp_path, 2)
    cut = truncated(tmp_path / "green pear.jpg")
    assert len(read_folder(tmp_path, allow_missing_captions=True).pairs) == 2
    picture(cut)
    repaired = read_folder(tmp_path, allow_missing_captions=True)
    assert len(repaired.pairs) == 3
    assert not repaired.unusable


def test_a_damaged_index_is_built_again(tmp_path, decoded):
    captioned(tmp_path, 3)
    expected = all_facts(read_folder(tmp_path))
    (folder,) = (tmp_path / ".latentsmith").iterdir()
    for file in ("index.json", "names.npy"):
        os.truncate(folder / file, 20)
        assert all_facts(read_folder(tmp_path)) == expected
        assert (folder / file).stat().st_size > 20


def test_an_interrupted_check_continues(tmp_path, decoded, monkeypatch):
    captioned(tmp_path, 6)
    monkeypatch.setattr(index, "SAVE_EVERY", 0.0)

    def stopping(items, title, total):
        for k, item in enumerate(items):
            if k == 4:
                raise KeyboardInterrupt
            yield item

    monkeypatch.setattr(parallel, "CHUNK", 1)
    with pytest.raises(KeyboardInterrupt):
        read_folder(tmp_path, progress=stopping)
    decoded.clear()
    assert len(read_folder(tmp_path).pairs) == 6
    assert sorted(decoded) == ["004.png", "005.png"]
    assert len(list((tmp_path / ".latentsmith").iterdir())) == 1


def test_an_index_that_cannot_be_saved_gives_a_note(tmp_path, decoded, monkeypatch):
    captioned(tmp_path / "data", 3)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LATENTSMITH_INDEX", str(tmp_path / "file"))
    folder = read_folder(tmp_path / "data")
    assert len(folder.pairs) == 3
    assert "LATENTSMITH_INDEX" in folder.notes[-1]
    monkeypatch.setenv("LATENTSMITH_INDEX", str(tmp_path / "elsewhere"))
    assert not read_folder(tmp_path / "data").notes
    decoded.clear()
    read_folder(tmp_path / "data")
    assert decoded == []
    assert not (tmp_path / "data" / ".latentsmith").exists()


def test_a_file_with_other_content_of_the_same_size_is_noticed(tmp_path):
    captioned(tmp_path, 2)
    one, other = (read_folder(tmp_path).pairs.column("sha256") for _ in "12")
    assert (one == other).all()
    (tmp_path / "000.png").write_bytes((tmp_path / "001.png").read_bytes())
    changed = read_folder(tmp_path).pairs.column("sha256")
    assert (changed[0] == changed[1]).all()
    assert (changed[1] == one[1]).all()


def test_readers_that_start_at_the_same_time_get_the_same(tmp_path):
    captioned(tmp_path, 30)
    with ThreadPoolExecutor(6) as pool:
        results = list(pool.map(lambda _: all_facts(read_folder(tmp_path)), range(6)))
    assert all(result == results[0] for result in results)
    assert len(list((tmp_path / ".latentsmith").iterdir())) == 1
    assert all_facts(read_folder(tmp_path)) == results[0]


def test_the_fingerprint_depends_on_all_visible_files(tmp_path):
    data = captioned(tmp_path / "data", 3)
    elsewhere = captioned(tmp_path / "elsewhere", 2)
    (data / "link").symlink_to(elsewhere, target_is_directory=True)
    (elsewhere / "loop").symlink_to(data, target_is_directory=True)
    (data / "gone.png").symlink_to(tmp_path / "nowhere.png")
    fingerprints = [folder_fingerprint(data)]
    picture(data / ".hidden" / "a.png")
    picture(data / "__MACOSX" / "a.png")
    (data / ".hidden.png").write_bytes(b"x")
    assert folder_fingerprint(data) == fingerprints[0]
    (data / "notes").mkdir()
    assert folder_fingerprint(data) == fingerprints[0]

    def check_changed() -> None:
        fingerprints.append(folder_fingerprint(data))
        assert len(set(fingerprints)) == len(fingerprints)

    (data / "000.png").rename(data / "notes" / "000.png")
    check_changed()
    picture(elsewhere / "001.png", seed=55)
    check_changed()
    (data / "000.txt").write_text("a caption")
    check_changed()
    os.utime(data / "001.png", ns=(1, 1))
    check_changed()
    (data / "gone.png").unlink()
    check_changed()


def test_the_index_holds_no_absolute_path(tmp_path):
    captioned(tmp_path / "secret place", 2)
    truncated(tmp_path / "secret place" / "cut.jpg")
    read_folder(tmp_path / "secret place", allow_missing_captions=True)
    for file in (tmp_path / "secret place" / ".latentsmith").rglob("*.*"):
        if file.is_file():
            assert b"secret place" not in file.read_bytes()
