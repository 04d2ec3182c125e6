"""Data sets that save_to_disk of Hugging Face's datasets has written."""

import json
from dataclasses import replace

import pytest

from dataset.folder import read_folder
from dataset.options import DEFAULT_OPTIONS
from foundation.errors import MissingFileError, UserError
from tests.helpers.data.parquet_files import image_table, write_arrow


def save(folder, root, numbers):
    """Write what `save_to_disk` writes."""
    for k, part in enumerate((numbers[:2], numbers[2:])):
        write_arrow(folder / f"data-0000{k}-of-00002.arrow", image_table(root, part))
    files = [{"filename": f"data-0000{k}-of-00002.arrow"} for k in range(2)]
    (folder / "state.json").write_text(json.dumps({"_data_files": files, "_split": "train"}))


def test_saved_data_sets_and_their_splits(tmp_path):
    save(tmp_path / "one", tmp_path, range(4))
    assert len(read_folder(tmp_path / "one").pairs) == 4
    save(tmp_path / "dict" / "train", tmp_path, range(5))
    save(tmp_path / "dict" / "test", tmp_path, range(3))
    (tmp_path / "dict" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    with pytest.raises(UserError, match=r"'train'.*'test'"):
        read_folder(tmp_path / "dict")
    for split, count in (("train", 5), ("test", 3)):
        chosen = replace(DEFAULT_OPTIONS, split=split)
        assert len(read_folder(tmp_path / "dict", options=chosen).pairs) == count
    (tmp_path / "one" / "data-00001-of-00002.arrow").unlink()
    with pytest.raises(MissingFileError, match="data-00001"):
        read_folder(tmp_path / "one")


@pytest.mark.slow
def test_what_the_library_itself_writes(tmp_path):
    datasets = pytest.importorskip("datasets")
    table = image_table(tmp_path, range(6))
    rows = [{"image": str(tmp_path / "images" / f"{k:03d}.png"), "text": f"t{k}"} for k in range(6)]
    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    data = datasets.Dataset.from_list(rows, features=features)
    data.save_to_disk(tmp_path / "saved", num_shards=2)
    data.to_parquet(tmp_path / "hub" / "train-00000-of-00001.parquet")
    split = data.train_test_split(2)
    split.save_to_disk(tmp_path / "dict")
    for name in ("saved", "hub"):
        pairs = read_folder(tmp_path / name).pairs
        contents = [pair.path.read_bytes() for pair in pairs]
        assert contents == [image["bytes"].as_py() for image in table["image"]]
    test = replace(DEFAULT_OPTIONS, split="test")
    assert len(read_folder(tmp_path / "dict", options=test).pairs) == 2
