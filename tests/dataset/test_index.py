"""A second start decodes nothing; what changed meanwhile is seen, and only that is read again."""

import os
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from dataset import index
from dataset.folder import Folder, read_folder
from dataset.listing import fingerprint
from dataset.table import COLUMNS, Strings
from tests.helpers.images import captioned, picture, table, truncated, write_metadata


@pytest.fixture
def decoded(monkeypatch) -> list[str]:
    """The names of the files that are opened from here on."""
    names = []
    inspect = index.inspect_image

    def watched(path: Path):
        names.append(path.name)
        return inspect(path)

    monkeypatch.setattr(index, "inspect_image", watched)
    return names


def everything(folder: Folder) -> tuple:
    columns = [folder.pairs.column(name).tolist() for name in COLUMNS]
    return folder.rule, list(folder.pairs), columns, folder.modes, folder.unusable, folder.notes


def test_a_second_start_decodes_nothing_and_finds_the_same(tmp_path, decoded):
    captioned(tmp_path, 5)
    truncated(tmp_path / "cut.jpg")
    (tmp_path / "metadata.csv").write_text("file_name,text\n")
    first = read_folder(tmp_path, allow_missing_captions=True)
    assert sorted(decoded) == [*(f"{k:03d}.png" for k in range(5)), "cut.jpg"]
    decoded.clear()
    second = read_folder(tmp_path, allow_missing_captions=True)
    assert decoded == []
    assert everything(first) == everything(second)
    assert first.unusable and first.notes
    assert isinstance(second.pairs.table.columns["sha256"], np.memmap)


def test_only_what_changed_is_decoded_again(tmp_path, decoded):
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


def test_the_index_moves_with_the_folder(tmp_path, decoded):
    captioned(tmp_path / "old", 3)
    truncated(tmp_path / "old" / "cut.jpg")
    read_folder(tmp_path / "old", allow_missing_captions=True)
    decoded.clear()
    (tmp_path / "old").rename(tmp_path / "new")
    moved = read_folder(tmp_path / "new", allow_missing_captions=True)
    assert decoded == []
    assert moved.unusable[0].path == tmp_path / "new" / "cut.jpg"
    assert moved.pairs[2].path == tmp_path / "new" / "002.png"


def test_a_broken_image_that_is_repaired_counts_again(tmp_path):
    captioned(tmp_path, 2)
    cut = truncated(tmp_path / "green pear.jpg")
    assert len(read_folder(tmp_path, allow_missing_captions=True).pairs) == 2
    picture(cut)
    repaired = read_folder(tmp_path, allow_missing_captions=True)
    assert len(repaired.pairs) == 3
    assert not repaired.unusable


def test_a_damaged_index_is_made_again(tmp_path, decoded):
    captioned(tmp_path, 3)
    expected = everything(read_folder(tmp_path))
    (kept,) = (tmp_path / ".latentsmith").iterdir()
    for file in ("index.json", "names.npy"):
        os.truncate(kept / file, 20)
        assert everything(read_folder(tmp_path)) == expected
        assert (kept / file).stat().st_size > 20


def test_an_interrupted_check_goes_on(tmp_path, decoded, monkeypatch):
    captioned(tmp_path, 6)
    monkeypatch.setattr(index, "KEEP_EVERY", 0.0)

    def stopping(items, title, total):
        for k, item in enumerate(items):
            if k == 4:
                raise KeyboardInterrupt
            yield item

    monkeypatch.setattr(index, "BLOCK", 1)
    with pytest.raises(KeyboardInterrupt):
        read_folder(tmp_path, progress=stopping)
    decoded.clear()
    assert len(read_folder(tmp_path).pairs) == 6
    assert sorted(decoded) == ["004.png", "005.png"]
    assert len(list((tmp_path / ".latentsmith").iterdir())) == 1


def test_where_nothing_can_be_written_a_note_says_so(tmp_path, decoded, monkeypatch):
    captioned(tmp_path / "data", 3)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LATENTSMITH_INDEX", str(tmp_path / "file"))
    folder = read_folder(tmp_path / "data")
    assert len(folder.pairs) == 3
    assert "LATENTSMITH_INDEX to a folder that can be written" in folder.notes[-1]
    monkeypatch.setenv("LATENTSMITH_INDEX", str(tmp_path / "elsewhere"))
    assert not read_folder(tmp_path / "data").notes
    decoded.clear()
    read_folder(tmp_path / "data")
    assert decoded == []
    assert not (tmp_path / "data" / ".latentsmith").exists()


def test_a_copied_file_is_another_file(tmp_path):
    """Same name and size, other content and time."""
    captioned(tmp_path, 2)
    one, other = (read_folder(tmp_path).pairs.column("sha256") for _ in "12")
    assert (one == other).all()
    (tmp_path / "000.png").write_bytes((tmp_path / "001.png").read_bytes())
    changed = read_folder(tmp_path).pairs.column("sha256")
    assert (changed[0] == changed[1]).all()
    assert (changed[1] == one[1]).all()


def test_processes_that_start_together_find_the_same(tmp_path):
    captioned(tmp_path, 30)
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda _: everything(read_folder(tmp_path)), range(6)))
    assert all(one == found[0] for one in found)
    assert len(list((tmp_path / ".latentsmith").iterdir())) == 1
    assert everything(read_folder(tmp_path)) == found[0]


def test_the_fingerprint_is_of_the_files_that_count(tmp_path):
    data = captioned(tmp_path / "data", 3)
    elsewhere = captioned(tmp_path / "elsewhere", 2)
    (data / "link").symlink_to(elsewhere, target_is_directory=True)
    (elsewhere / "loop").symlink_to(data, target_is_directory=True)
    (data / "gone.png").symlink_to(tmp_path / "nowhere.png")
    prints = [fingerprint(data)]
    picture(data / ".hidden" / "a.png")
    picture(data / "__MACOSX" / "a.png")
    (data / ".hidden.png").write_bytes(b"x")
    assert fingerprint(data) == prints[0]
    (data / "notes").mkdir()
    assert fingerprint(data) == prints[0]

    def seen() -> None:
        prints.append(fingerprint(data))
        assert len(set(prints)) == len(prints)

    (data / "000.png").rename(data / "notes" / "000.png")
    seen()
    picture(elsewhere / "001.png", seed=55)
    seen()
    (data / "000.txt").write_text("a caption")
    seen()
    os.utime(data / "001.png", ns=(1, 1))
    seen()
    (data / "gone.png").unlink()
    seen()


def test_pairs_behave_like_a_list_of_pairs(tmp_path):
    pairs = table({f"{k}.png": [f"a{k}", f"ä\n{k}"] for k in range(5)}, tmp_path).pairs
    as_list = list(pairs)
    assert as_list[3].path == tmp_path / "3.png"
    assert as_list[3].captions == ("a3", "ä\n3")
    assert list(pairs[1:4]) == as_list[1:4]
    assert pairs[-1] == as_list[-1]
    assert list(pairs[3:] + pairs[:2]) == as_list[3:] + as_list[:2]
    assert list(pairs.paths[2:]) == [pair.path for pair in as_list[2:]]
    with pytest.raises(IndexError):
        pairs[5]


def test_another_process_gets_the_place_of_the_table_and_not_its_content(tmp_path):
    captioned(tmp_path, 40)
    pairs = read_folder(tmp_path).pairs
    sent = pickle.dumps(pairs)
    assert b"picture number 7" not in sent
    assert list(pickle.loads(sent)) == list(pairs)
    alone = table({"a.png": ["x"]}).pairs
    assert list(pickle.loads(pickle.dumps(alone))) == list(alone)


def test_the_index_holds_no_path_of_this_machine(tmp_path):
    captioned(tmp_path / "secret place", 2)
    truncated(tmp_path / "secret place" / "cut.jpg")
    read_folder(tmp_path / "secret place", allow_missing_captions=True)
    for file in (tmp_path / "secret place" / ".latentsmith").rglob("*.*"):
        if file.is_file():
            assert b"secret place" not in file.read_bytes()


def test_strings_come_back():
    texts = ["", "a", "äöü 猫", "two\nlines", ""]
    data = b"".join(text.encode() + b"\n" for text in texts)
    starts = np.cumsum([0, *(len(text.encode()) + 1 for text in texts)])
    assert list(Strings(np.frombuffer(data, np.uint8), starts)) == texts
