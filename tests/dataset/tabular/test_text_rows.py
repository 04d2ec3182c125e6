"""CSV, TSV, JSONL and JSON tables of image files, under any name."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from dataset.folder import read_folder
from dataset.options import DEFAULT_OPTIONS
from foundation.errors import MissingFileError, UserError
from tests.helpers.data.parquet_files import write_parquet
from tests.helpers.images import picture


def pictures(folder: Path, count: int = 3) -> list[str]:
    return [picture(folder / f"{k}.png", seed=k).name for k in range(count)]


def read(data: Path, **options: str):
    """Return image name -> captions."""
    pairs = read_folder(data, options=replace(DEFAULT_OPTIONS, **options)).pairs
    root = pairs.table.root
    return {Path(pair.path).relative_to(root).as_posix(): pair.captions for pair in pairs}


@pytest.mark.parametrize("ending, delimiter", [("csv", ","), ("tsv", "\t")])
def test_csv_with_other_columns(tmp_path, ending, delimiter):
    names = pictures(tmp_path)
    rows = [["id", "image_name", "comment"], ["1", names[0], "a"], ["2", names[0], "b"]]
    rows += [["3", names[2], '"a ""red"" fox"']]
    file = tmp_path / f"any name.{ending}"
    file.write_text("\n".join(delimiter.join(row) for row in rows))
    assert read(file) == {"0.png": ("a", "b"), "2.png": ('a "red" fox',)}
    assert read(file, image_column="image_name", caption_column="id") == {
        "0.png": ("1", "2"),
        "2.png": ("3",),
    }
    with pytest.raises(UserError, match=r"'comments'.*comment"):
        read(file, caption_column="comments")
    file.write_text(file.read_text() + f"\n4{delimiter}{names[1]}")
    with pytest.raises(UserError, match=rf"{ending} line 5 .* 2, not 3"):
        read(file)


def test_jsonl_and_json_rows_and_objects(tmp_path):
    names = pictures(tmp_path)
    rows = [{"img_path": name, "prompt": [name, "x"]} for name in names]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "b.json").write_text(json.dumps(rows))
    (tmp_path / "c.json").write_text(json.dumps({name: [name, "x"] for name in names}))
    for file in ("a.jsonl", "b.json", "c.json"):
        assert read(tmp_path / file) == {name: (name, "x") for name in names}


def test_rows_that_cannot_be_used_are_named_and_counted(tmp_path):
    pictures(tmp_path, 2)
    values = ["0.png", "gone.png", None, 5, "1.png", "0.png"]
    rows = [{"image": value, "text": f"row {k}"} for k, value in enumerate(values)]
    rows[4]["text"] = {"not": "text"}
    file = tmp_path / "x.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    folder = read_folder(file)
    text = " ".join(map(str, folder.unusable))
    assert all(f"line {k}" in text for k in (2, 3, 4, 5))
    assert [pair.captions for pair in folder.pairs] == [("row 0", "row 5")]


def test_a_repaired_image_is_noticed(tmp_path):
    pictures(tmp_path, 2)
    file = tmp_path / "x.csv"
    file.write_text("file,text\n0.png,a\n1.png,b\n2.png,c\n")
    assert len(read_folder(file).pairs) == 2
    picture(tmp_path / "2.png", seed=2)
    assert len(read_folder(file).pairs) == 3
    first = read_folder(file).pairs.column("sha256")[0].tobytes()
    picture(tmp_path / "0.png", seed=9, size=(9, 9))
    assert read_folder(file).pairs.column("sha256")[0].tobytes() != first


def coco(names: list[str]) -> str:
    images = [{"id": 10 + k, "file_name": name} for k, name in enumerate(names)]
    captions = [
        {"image_id": 10 + k, "id": k, "caption": f"{name} {j}"}
        for j in range(2)
        for k, name in enumerate(names)
    ]
    return json.dumps({"info": {}, "images": images, "annotations": captions})


def test_coco_finds_the_images_beside_it(tmp_path):
    for name in ("train2017", "val2017"):
        names = pictures(tmp_path / name)  # the same names in both
        file = tmp_path / "annotations" / f"captions_{name}.json"
        file.parent.mkdir(exist_ok=True)
        file.write_text(coco(names))
        assert read(file)["1.png"] == ("1.png 0", "1.png 1")
        assert read_folder(file).pairs.table.root.name == name
    with pytest.raises(UserError, match=r"train.*validation"):
        read(tmp_path)
    assert read_folder(tmp_path, options=replace(DEFAULT_OPTIONS, split="val")).pairs


def test_splits_of_karpathy(tmp_path):
    names = pictures(tmp_path / "images")
    images = [
        {"filename": name, "split": split, "sentences": [{"raw": f"{name} a"}, {"raw": "b"}]}
        for name, split in zip(names, ("train", "val", "train"), strict=True)
    ]
    file = tmp_path / "dataset_flickr8k.json"
    file.write_text(json.dumps({"images": images}))
    with pytest.raises(UserError, match=r"train.*val"):
        read(file)
    assert read(file, split="train") == {name: (f"{name} a", "b") for name in (names[0], names[2])}


def test_parquet_that_names_files(tmp_path):
    names = pictures(tmp_path)
    paths = [names[0], str(tmp_path / names[1]), f".\\{names[2]}"]
    write_parquet(tmp_path / "metadata.parquet", pa.table({"file_name": paths, "text": names}))
    assert read(tmp_path) == {name: (name,) for name in names}
    assert read(tmp_path / "metadata.parquet") == read(tmp_path)


def test_images_that_are_nowhere_or_in_the_network(tmp_path):
    file = tmp_path / "x.csv"
    file.write_text("image,text\nx/1.png,a\n")
    with pytest.raises(UserError, match=r"x/1\.png"):
        read(file)
    file.write_text("image,text\nhttps://e.org/1.png,a\n")
    with pytest.raises(UserError, match="img2dataset"):
        read(file)
    with pytest.raises(MissingFileError, match=r"y\.csv"):
        read(tmp_path / "y.csv")


def test_two_names_of_one_file_are_no_two_images(tmp_path):
    """As a disk has it that does not distinguish capitals; here the file has two names."""
    file = picture(tmp_path / "a.png", seed=0)
    os.link(file, tmp_path / "A.PNG")
    picture(tmp_path / "B.png", seed=1)
    picture(tmp_path / "b.png", seed=2)
    rows = [{"image": name, "text": f"of {name}"} for name in ("a.png", "A.PNG", "B.png", "b.png")]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert read(tmp_path / "rows.jsonl").keys() == {"a.png", "B.png", "b.png"}
    (left_out,) = read_folder(tmp_path / "rows.jsonl").unusable
    assert left_out.path.name == "A.PNG" and "'a.png'" in left_out.reason
