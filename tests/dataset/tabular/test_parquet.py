"""Parquet and Arrow files as data: the same pixels, order and split as a folder of the images."""

import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from dataset.checking.accounting import entry_account
from dataset.folder import read_folder
from dataset.images.transform import ImageTransform
from dataset.loader import ImageBatches
from dataset.options import DEFAULT_OPTIONS, ReadOptions
from dataset.source import Cell
from dataset.table import split
from dataset.tabular import group_cache
from foundation.errors import MissingFileError, UserError
from tests.helpers.data.parquet_files import image_table, write_arrow, write_parquet

TRANSFORM = ImageTransform(8)


def options(**values: str) -> ReadOptions:
    return replace(DEFAULT_OPTIONS, **values)


@pytest.mark.parametrize("write, ending", [(write_parquet, "parquet"), (write_arrow, "arrow")])
def test_a_table_equals_the_folder_of_its_images(tmp_path, write, ending):
    numbers = [7, 2, 9, 0, 4, 1, 8, 3, 5, 6, 10]  # not in the order of their names
    write(tmp_path / "t" / f"b.{ending}", image_table(tmp_path, numbers[:6]))
    write(tmp_path / "t" / f"a.{ending}", image_table(tmp_path, numbers[6:]))
    table = read_folder(tmp_path / "t").pairs
    folder = read_folder(tmp_path / "images").pairs
    assert len(table) == 11
    for column in ("sha256", "captions_hash", "place", "width", "height"):
        assert (table.column(column) == folder.column(column)).all()
    assert all(isinstance(pair.path, Cell) for pair in table)
    for ours, theirs in zip(split(table, 0.3), split(folder, 0.3), strict=True):
        assert [pair.captions for pair in ours] == [pair.captions for pair in theirs]
        batches = [ImageBatches(part, TRANSFORM, 2, seed=5, in_memory=0) for part in (ours, theirs)]
        for step in range(9):
            assert (batches[0][step][0] == batches[1][step][0]).all()
            assert batches[0][step][1] == batches[1][step][1]


def test_the_index_serves_the_second_start(tmp_path, monkeypatch):
    file = write_parquet(tmp_path / "x.parquet", image_table(tmp_path, range(5)))
    first = read_folder(file).pairs
    monkeypatch.setattr("dataset.index.examine_image", None)
    second = read_folder(str(tmp_path / "*.parquet")).pairs
    assert (first.column("sha256") == second.column("sha256")).all()
    assert second[3].path.read_bytes() == (tmp_path / "images" / "003.png").read_bytes()


def test_bytes_without_names_are_called_after_their_rows(tmp_path):
    table = image_table(tmp_path, range(12))
    images = table["image"].combine_chunks().field("bytes")
    plain = pa.table({"jpg": images, "caption": table["text"]})
    pairs = read_folder(write_parquet(tmp_path / "x.parquet", plain)).pairs
    assert pairs.table.names[10] == "x.parquet/000000010"
    assert [pair.captions[0] for pair in pairs] == [f"picture number {k}" for k in range(12)]


def test_broken_rows_are_named_and_counted(tmp_path):
    table = image_table(tmp_path, range(8)).to_pylist()
    table[1]["image"]["bytes"] = b"no picture"
    table[3]["image"] = None
    table[4]["image"]["bytes"] = b""
    table[5]["text"] = None
    table[6]["image"] = {"bytes": None, "path": "images/006.png"}  # a file beside the table
    table[7]["image"] = {"bytes": None, "path": "nowhere.png"}
    schema = image_table(tmp_path, range(1)).schema
    file = write_parquet(tmp_path / "x.parquet", pa.Table.from_pylist(table, schema))
    folder = read_folder(file, allow_missing_captions=True)
    places = sorted(str(entry.path).removeprefix(f"{file}: ") for entry in folder.unusable)
    assert places == [
        "row group 0, row 1",
        "row group 1, row 3",
        "row group 1, row 4",
        "row group 2, row 7",
    ]
    assert len(folder.pairs) == 4
    assert len(folder.without_caption) == 1
    assert len(folder.pairs) + len(folder.unusable) == len(table)
    again = read_folder(file, allow_missing_captions=True)
    assert sorted(map(str, again.unusable)) == sorted(map(str, folder.unusable))
    with pytest.raises(UserError, match="row group 0, row 1"):
        folder.require_all_usable()


def test_captions_as_lists_and_as_classes(tmp_path):
    table = image_table(tmp_path, range(3)).drop_columns(["text"])
    lists = table.append_column("captions", pa.array([["a", "b"], [], ["c", "c"]]))
    folder = read_folder(write_parquet(tmp_path / "l.parquet", lists), True)
    assert [pair.captions for pair in folder.pairs] == [("a", "b"), ("",), ("c",)]
    features = {"label": {"_type": "ClassLabel", "names": ["red_fox", "cat"]}}
    note = {"huggingface": json.dumps({"info": {"features": features}})}
    classes = table.append_column("label", pa.array([1, 0, -1])).replace_schema_metadata(note)
    folder = read_folder(write_parquet(tmp_path / "c.parquet", classes), True)
    assert [pair.captions for pair in folder.pairs] == [("cat",), ("red fox",), ("",)]


def test_columns_are_chosen_by_name_or_refused(tmp_path):
    table = image_table(tmp_path, range(3))
    both = table.append_column("prompt", pa.array(["p", "q", "r"]))
    both = both.append_column("n", pa.array([1, 2, 3]))
    file = write_parquet(tmp_path / "x.parquet", both)
    with pytest.raises(UserError, match=r"text.*prompt.*caption_column"):
        read_folder(file)
    pairs = read_folder(file, options=options(caption_column="prompt")).pairs
    assert pairs[0].captions == ("p",)
    with pytest.raises(UserError, match=r"'promt'.*prompt"):
        read_folder(file, options=options(caption_column="promt"))
    for wrong in ({"caption_column": "n"}, {"image_column": "n"}):
        with pytest.raises(UserError, match=r"n \(int64\)"):
            read_folder(file, options=options(**wrong))
    links = pa.table({"url": ["https://e.org/1.jpg"], "text": ["a"]})
    with pytest.raises(UserError, match="img2dataset"):
        read_folder(write_parquet(tmp_path / "u.parquet", links))


def test_splits_by_file_names_and_by_folders(tmp_path):
    for name, numbers in (("train-00000-of-00002", (0, 1)), ("train-00001-of-00002", (2, 3))):
        write_parquet(tmp_path / "hub" / "data" / f"{name}.parquet", image_table(tmp_path, numbers))
    write_parquet(tmp_path / "hub" / "data" / "test-0.parquet", image_table(tmp_path, (4,)))
    (tmp_path / "hub" / "README.md").write_text("a data set")
    with pytest.raises(UserError, match=r"test.*train"):
        read_folder(tmp_path / "hub")
    assert len(read_folder(tmp_path / "hub", options=options(split="train")).pairs) == 4
    assert len(read_folder(tmp_path / "hub", options=options(split="test")).pairs) == 1
    with pytest.raises(UserError, match="validation"):
        read_folder(tmp_path / "hub", options=options(split="validation"))


@pytest.mark.parametrize("ending", ["parquet", "arrow"])
def test_damaged_files_are_named(tmp_path, ending):
    write = write_parquet if ending == "parquet" else write_arrow
    file = write(tmp_path / f"x.{ending}", image_table(tmp_path, range(9)))
    content = file.read_bytes()
    for damaged in (b"", b"PAR1", content[:100], content[: len(content) // 2], b"x" * 1000):
        file.write_bytes(damaged)
        with pytest.raises(UserError, match=rf"x\.{ending}"):
            read_folder(file)
    with pytest.raises(MissingFileError, match=r"y\.parquet"):
        read_folder(tmp_path / "y.parquet")


def test_large_row_groups_are_read_in_little_memory_and_named(tmp_path, monkeypatch):
    file = write_parquet(tmp_path / "x.parquet", image_table(tmp_path, range(300)), rows=300)
    monkeypatch.setattr("dataset.tabular.catalog.LARGE_GROUP", 10_000)
    monkeypatch.setattr(group_cache.GROUPS, "capacity", 10_000)
    group_cache.GROUPS.entries.clear()
    folder = read_folder(file)
    assert any("x.parquet" in note for note in folder.notes)
    for k in (5, 299, 0, 150, 151, 140):
        image = tmp_path / "images" / f"{k:03d}.png"
        assert folder.pairs[k].path.read_bytes() == image.read_bytes()
    (entry,) = group_cache.GROUPS.entries.values()
    assert isinstance(entry.column, group_cache.LargeGroup)
    assert sum(len(batch) for _, batch in entry.column.kept) <= 128


def test_a_picture_in_many_rows_is_in_memory_once(tmp_path, monkeypatch):
    table = pa.concat_tables([image_table(tmp_path, (0, 1))] * 200)
    file = write_parquet(tmp_path / "x.parquet", table, rows=400)
    capacity = 2 * (tmp_path / "images" / "000.png").stat().st_size + 8000  # not those of all rows
    monkeypatch.setattr(group_cache.GROUPS, "capacity", capacity)
    group_cache.GROUPS.entries.clear()
    cells = [Cell(file, 0, row, "image") for row in (399, 0, 200, 7)]
    for cell in cells:
        assert cell.read_bytes() == (tmp_path / "images" / f"00{cell.row % 2}.png").read_bytes()
    (entry,) = group_cache.GROUPS.entries.values()
    assert isinstance(entry.column, group_cache.ImageColumn)
    assert 0 < entry.size <= capacity


def test_the_cache_of_row_groups_is_bounded(tmp_path):
    file = write_parquet(tmp_path / "x.parquet", image_table(tmp_path, range(60)), rows=5)
    pairs = read_folder(file).pairs
    cache = group_cache.GroupCache(capacity=3000)
    random = np.random.default_rng(0)
    for k in random.integers(0, 60, 200).tolist():
        assert cache.value(pairs[k].path) == (tmp_path / "images" / f"{k:03d}.png").read_bytes()
        assert cache.size <= 3000
        assert cache.size == sum(entry.size for entry in cache.entries.values())


def test_missing_pyarrow_names_the_command(tmp_path, monkeypatch):
    file = write_parquet(tmp_path / "x.parquet", image_table(tmp_path, range(2)))
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    group_cache.open_columnar.cache_clear()
    with pytest.raises(UserError, match="pip install pyarrow"):
        read_folder(file)


def test_the_account_sums_up_over_rows(tmp_path):
    table = image_table(tmp_path, range(6)).to_pylist()
    table[1]["image"]["bytes"] = b"no picture"
    table[2]["image"] = None
    table[3]["image"] = {"bytes": None, "path": "images/000.png"}
    table[4]["image"] = {"bytes": None, "path": "images/000.png"}
    schema = image_table(tmp_path, range(1)).schema
    file = write_parquet(tmp_path / "x.parquet", pa.Table.from_pylist(table, schema))
    for _ in range(2):
        account = entry_account(read_folder(file))
        assert sum(account.values()) == 6
        assert sorted(account.values()) == [1, 1, 1, 3]
