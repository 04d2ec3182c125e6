"""Corrected captions stand where the others stand, and nothing else changes."""

import json

import pytest

from dataset.editing.captions import SIDECARS, editable_source, write_captions
from dataset.editing.new_folder import copy_folder, gather_files, without_common_folder
from dataset.folder import read_folder
from foundation.errors import UserError
from tests.helpers.images import captioned, picture, write_metadata


def captions_of(root):
    folder = read_folder(root, allow_missing_captions=True)
    return {pair.path.relative_to(root).as_posix(): pair.captions for pair in folder.pairs}


def lines_of(file):
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def test_a_row_of_jsonl_keeps_its_other_fields_and_the_others_their_captions(tmp_path):
    picture(tmp_path / "a.png", 1)
    picture(tmp_path / "b.png", 2)
    picture(tmp_path / "sub" / "c.png", 3)
    rows = [
        {"author": "Ä", "file_name": "a.png", "text": "old", "rating": 0.1},
        {"file_name": "b.png", "text": ["one", "two"]},
        {"file_name": "gone.png", "text": "of no image"},
    ]
    write_metadata(tmp_path, rows)
    assert editable_source(tmp_path) == "metadata.jsonl"
    before = {"a.png": ("old",), "b.png": ("one", "two"), "sub/c.png": ("",)}
    after = {"a.png": ("näw", "second"), "b.png": ("one",), "sub/c.png": ("deep",)}
    write_captions(tmp_path, before, after)
    assert lines_of(tmp_path / "metadata.jsonl") == [
        {"author": "Ä", "file_name": "a.png", "text": ["näw", "second"], "rating": 0.1},
        {"file_name": "b.png", "text": ["one"]},
        {"file_name": "gone.png", "text": "of no image"},
        {"file_name": "sub/c.png", "text": "deep"},
    ]
    assert captions_of(tmp_path) == after


def test_several_rows_of_an_image_become_one_and_no_caption_is_none(tmp_path):
    for name in ("a.png", "b.png"):
        picture(tmp_path / name, 1)
    rows = [{"file_name": "a.png", "text": text} for text in ("one", "two")]
    write_metadata(tmp_path, [*rows, {"file_name": "b.png", "text": "b"}])
    before = {"a.png": ("one", "two"), "b.png": ("b",)}
    write_captions(tmp_path, before, {"a.png": ("two", "three"), "b.png": ()})
    assert captions_of(tmp_path) == {"a.png": ("two", "three"), "b.png": ("",)}


def test_a_csv_file_keeps_columns_and_quotes(tmp_path):
    for name in ("a.png", "b.png", "c.png"):
        picture(tmp_path / name, 1)
    text = 'author,file_name,caption\n"Smith, J.",a.png,"a ""red"" one"\nK,b.png,b\n'
    (tmp_path / "metadata.csv").write_text(text, encoding="utf-8")
    assert editable_source(tmp_path) == "metadata.csv"
    before = {"b.png": ("b",), "c.png": ("",)}
    write_captions(tmp_path, before, {"b.png": ('so, "new"', "more"), "c.png": ("sea",)})
    assert (tmp_path / "metadata.csv").read_text(encoding="utf-8") == (
        'author,file_name,caption\n"Smith, J.",a.png,"a ""red"" one"\n'
        'K,b.png,"so, ""new"""\nK,b.png,more\n,c.png,sea\n'
    )


def test_files_beside_the_images_are_written_one_for_each_image(tmp_path):
    for name in ("a.png", "a.jpg", "b.png", "c.png"):
        picture(tmp_path / name, 1)
    (tmp_path / "a.txt").write_text("both\n")
    (tmp_path / "b.png.txt").write_text("b")
    assert editable_source(tmp_path) == SIDECARS
    before = {"a.jpg": ("both",), "b.png": ("b",), "c.png": ("",)}
    after = {"a.jpg": ("jpeg",), "b.png": ("b", "B"), "c.png": ("c",)}
    write_captions(tmp_path, before, after)
    assert captions_of(tmp_path) == {**after, "a.png": ("both",)}
    assert (tmp_path / "b.png.txt").read_text() == "b\nB\n"
    assert (tmp_path / "c.txt").read_text() == "c\n"


def test_what_somebody_else_has_changed_is_not_overwritten(tmp_path):
    captioned(tmp_path, 2)
    text = (tmp_path / "metadata.jsonl").read_text()
    with pytest.raises(UserError, match="meanwhile"):
        write_captions(tmp_path, {"000.png": ("other",)}, {"000.png": ("mine",)})
    with pytest.raises(UserError, match="no longer there"):
        write_captions(tmp_path, {"../000.png": ("x",)}, {"../000.png": ("y",)})
    assert (tmp_path / "metadata.jsonl").read_text() == text


@pytest.mark.parametrize("caption", ["a\nb", "a\0b", "x" * 100_001, "\ud800", "a\u2028b"])
def test_captions_that_a_file_cannot_hold_are_refused(tmp_path, caption):
    captioned(tmp_path, 2)
    text = (tmp_path / "metadata.jsonl").read_text()
    with pytest.raises(UserError, match="caption"):
        write_captions(tmp_path, {"000.png": ("picture number 0",)}, {"000.png": (caption,)})
    assert (tmp_path / "metadata.jsonl").read_text() == text


def test_weights_for_another_number_of_captions_are_not_guessed(tmp_path):
    picture(tmp_path / "a.png")
    rows = [{"file_name": "a.png", "text": ["one", "two"], "caption_weights": [1, 3]}]
    write_metadata(tmp_path, rows)
    before = {"a.png": ("one", "two")}
    with pytest.raises(UserError, match="caption_weights for 2 captions"):
        write_captions(tmp_path, before, {"a.png": ("one",)})
    write_captions(tmp_path, before, {"a.png": ("one", "three")})
    copy_folder(read_folder(tmp_path), tmp_path.parent / "copy")
    (row,) = lines_of(tmp_path.parent / "copy" / "metadata.jsonl")
    assert row == {"file_name": "a.png", "text": ["one", "three"], "caption_weights": [1, 3]}


def test_a_link_that_leads_out_is_not_written(tmp_path):
    root, outside = tmp_path / "data", tmp_path / "outside.txt"
    picture(root / "a.png")
    outside.write_text("secret\n")
    (root / "a.txt").symlink_to(outside)
    with pytest.raises(UserError, match="leads out"):
        write_captions(root, {"a.png": ("secret",)}, {"a.png": ("mine",)})
    assert outside.read_text() == "secret\n"


def test_class_folders_are_copied_before_captions_can_be_corrected(tmp_path):
    root, copy = tmp_path / "data", tmp_path / "copy"
    for k, name in enumerate(("cat/1.png", "cat/2.png", "dog/1.png", "dog/2.png")):
        picture(root / name, k)
    assert editable_source(root) == ""
    with pytest.raises(UserError, match="Copy the folder first"):
        write_captions(root, {"cat/1.png": ("cat",)}, {"cat/1.png": ("a cat",)})
    assert copy_folder(read_folder(root), copy) == 4
    assert captions_of(copy) == captions_of(root)
    assert (copy / "dog/2.png").read_bytes() == (root / "dog/2.png").read_bytes()
    write_captions(copy, {"cat/1.png": ("cat",)}, {"cat/1.png": ("a cat",)})
    assert captions_of(copy)["cat/1.png"] == ("a cat",)
    with pytest.raises(UserError, match="there already"):
        copy_folder(read_folder(root), copy)


def test_files_are_gathered_in_a_new_folder(tmp_path):
    source = captioned(tmp_path / "source", 3)
    files = [(file.name, file) for file in sorted(source.iterdir())]
    target = tmp_path / "new"
    assert gather_files(files, target, 10**6) == 3
    assert captions_of(target)["001.png"] == ("picture number 1",)
    with pytest.raises(UserError, match="there already"):
        gather_files(files, target, 10**6)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["a.png", "run.sh"], "neither an image"),
        (["a.png", ".hidden.png"], "hidden"),
        (["a.png", "A.PNG"], "two files"),
        (["a.png", "b:c.png"], "name has the character"),
        (["a.png", "con.png"], "device"),
        (["a.txt"], "no image"),
        ([], "no image"),
        (["red/a.png", "Red/A.png"], "two files"),
        (["a.png", "a.png/b.png"], "a file and a folder"),
        (["a.png", ".git/b.png"], "hidden folder"),
        (["a.png", "red/.b.png"], "hidden file"),
        (["../a.png"], "ends with a dot"),
        (["red/../../a.png"], "ends with a dot"),
        (["/etc/a.png"], "is empty"),
        (["red//a.png"], "is empty"),
        (["C:/a.png"], "has the character ':'"),
        (["red\\a.png"], "has the character"),
        (["%2e%2e/a.png"], "ends with a dot"),
        (["red/%2e%2e%2fa.png"], "has the character '/'"),
        (["a\0.png"], "has the character"),
        (["/".join("abcdefgh") + "/a.png"], "7 folders"),
        (["a" * 200 + ".png"], "200 characters"),
    ],
)
def test_files_that_are_no_data_are_refused(tmp_path, names, words):
    files = []
    for k, name in enumerate(names):
        own = tmp_path / str(k)
        files.append((name, picture(own.with_suffix(".png")) if name.endswith("g") else own))
        files[-1][1].touch()
    with pytest.raises(UserError, match=words):
        gather_files(files, tmp_path / "new", 10**6)
    assert not (tmp_path / "new").exists()


def test_folders_keep_their_names_and_places(tmp_path):
    names = ["birds/red/1.png", "birds/blue/1.png", "birds/blue/1.txt"]
    files = [picture(tmp_path / f"{k}.png", seed=k) for k in range(2)]
    files.append(tmp_path / "2.txt")
    files[-1].write_text("a blue bird")
    folder, inside = without_common_folder(names)
    assert (folder, inside) == ("birds", ["red/1.png", "blue/1.png", "blue/1.txt"])
    assert gather_files(list(zip(inside, files, strict=True)), tmp_path / "new", 10**6) == 2
    found = read_folder(tmp_path / "new", allow_missing_captions=True).pairs
    captions = {str(pair.path)[-10:]: pair.captions for pair in found}
    assert captions["blue/1.png"] == ("a blue bird",)


@pytest.mark.parametrize(
    "names", [["a.png"], ["a.png", "red/b.png"], ["red/a.png", "blue/a.png"], []]
)
def test_only_a_folder_of_all_files_is_taken_off_their_names(names):
    assert without_common_folder(names) == ("", names)


def test_more_bytes_than_are_taken_are_refused(tmp_path, monkeypatch):
    file = "a.png", picture(tmp_path / "a.png", size=(64, 64))
    with pytest.raises(UserError, match="at most"):
        gather_files([file], tmp_path / "new", 100)
    monkeypatch.setattr("dataset.editing.new_folder.SPARE", 2**60)
    with pytest.raises(UserError, match="are free"):
        gather_files([file], tmp_path / "new", 10**6)
