"""The first check in parts, by several processes or machines; and shards that state hashes."""

from itertools import islice
from pathlib import Path

import pytest

from check import main as check
from dataset import index
from dataset.folder import check_part, read_folder
from dataset.images.transform import ImageTransform
from dataset.loader import ImageBatches
from dataset.options import DEFAULT_OPTIONS, ReadOptions
from dataset.parallel import WorkShare, no_progress
from foundation import collectives
from foundation.errors import UserError
from tests.helpers.images import captioned, truncated
from tests.helpers.processes import on_ranks
from tests.helpers.shards import gray_jpeg, make_hashed_shards, make_shards, write_shard

TRUSTING = ReadOptions(trust_hashes=True)
COUNT = 10  # samples of which shards state the hashes


def files_of_index(root: Path) -> dict[str, bytes]:
    """Return the content of the one index of a data folder."""
    (folder,) = (root / ".latentsmith").iterdir()
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


def remove_index(root: Path) -> None:
    index.remove_folders(root / ".latentsmith")


def odd_shards(root: Path) -> str:
    """Write shards of which one has no image, and others have broken and unread members."""
    data = make_shards(root, 9)
    (root / "shards" / "003.tar").unlink(missing_ok=True)
    write_shard(root / "shards" / "003.tar", {"a.cls": b"1", "b.txt": b"no image"})
    members = {"c.png": b"broken", "c.cls": b"2", "d.npz": b"3", "e.jpg": gray_jpeg(5)}
    write_shard(root / "shards" / "004.tar", members)
    return data.replace("002}", "004}")


def read_on_rank(data: str) -> list[str]:
    share = WorkShare(collectives.rank(), collectives.world_size(), collectives.barrier)
    return list(read_folder(data, True, share=share).pairs.table.names)


@pytest.mark.parametrize("count", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_ranks_make_the_same_index_as_one_process(tmp_path, count):
    data = odd_shards(tmp_path)
    names = list(read_folder(data, True).pairs.table.names)
    alone = files_of_index(tmp_path / "shards")
    remove_index(tmp_path / "shards")
    assert on_ranks(read_on_rank, data, count=count) == [names] * count
    assert files_of_index(tmp_path / "shards") == alone


def test_shards_in_one_part_give_the_same_index_as_in_many(tmp_path, monkeypatch):
    data = odd_shards(tmp_path)
    read_folder(data, True)
    many = files_of_index(tmp_path / "shards")
    remove_index(tmp_path / "shards")
    monkeypatch.setattr("dataset.webdataset.MOST_PARTS", 1)
    read_folder(data, True)
    assert files_of_index(tmp_path / "shards") == many


@pytest.mark.parametrize("order", [(1, 2, 3), (3, 1, 2)])
def test_parts_of_a_folder_are_joined_by_the_last(tmp_path, monkeypatch, order):
    captioned(tmp_path, 7)
    truncated(tmp_path / "cut.jpg")
    expected = list(read_folder(tmp_path, True).pairs)
    alone = files_of_index(tmp_path)
    remove_index(tmp_path)
    monkeypatch.setattr(index, "LEAST_IMAGES", 3)
    done = [check_part(tmp_path, k, 3, no_progress, DEFAULT_OPTIONS) for k in order]
    assert done[-1] == (3, 3)
    assert done[0] == (1, 3)
    monkeypatch.setattr(index, "inspect_image", lambda path: pytest.fail("all is checked"))
    assert list(read_folder(tmp_path, True).pairs) == expected
    assert files_of_index(tmp_path) == alone


def test_a_start_checks_only_the_parts_that_are_missing(tmp_path, monkeypatch, capsys):
    data = make_shards(tmp_path)
    check([data, "--part", "2/3"])
    assert "1 of 3" in capsys.readouterr().out
    opened, inspect = [], index.inspect_image

    def recording(path):
        opened.append(path.name)
        return inspect(path)

    monkeypatch.setattr(index, "inspect_image", recording)
    assert len(read_folder(data).pairs) == 11
    assert sorted(opened) == [f"{k:03d}.png" for k in (0, 1, 2, 3, 8, 9, 10)]


@pytest.mark.parametrize("part", ["0/3", "4/3", "3", "1/0", "a/b"])
def test_a_part_that_does_not_exist_is_refused(tmp_path, part):
    with pytest.raises(UserError, match="K/N"):
        check([make_shards(tmp_path), "--part", part])


# Trusted hashes -----------------------------------------------------------------------------------


def test_trusted_hashes_give_the_index_of_decoded_images(tmp_path, monkeypatch):
    data, opened, inspect = make_hashed_shards(tmp_path), [], index.inspect_image

    def recording(path):
        opened.append(path.name)
        return inspect(path)

    monkeypatch.setattr(index, "inspect_image", recording)
    trusted = read_folder(data, options=TRUSTING)
    assert sorted(opened) == ["000.jpg", "003.jpg", "005.jpg"]  # samples, and one without a hash
    assert trusted.pairs.table.is_trusted
    checked = read_folder(data)
    assert sorted(opened[3:]) == [f"{k:03d}.jpg" for k in range(COUNT)]
    for name, values in checked.pairs.table.arrays().items():
        assert (trusted.pairs.table.arrays()[name] == values).all(), name
    assert trusted.pairs.table.modes == checked.pairs.table.modes
    assert list(trusted.pairs) == list(checked.pairs)
    assert not read_folder(data, options=TRUSTING).pairs.table.is_trusted  # the better one is there


@pytest.mark.parametrize("fault", [{"damage": 6}, {"stated": 7}])
def test_a_wrong_hash_is_named_when_the_image_is_read(tmp_path, fault):
    data = make_hashed_shards(tmp_path, **fault)
    pairs = read_folder(data, options=TRUSTING).pairs
    batches = ImageBatches(pairs, ImageTransform(8), 2, seed=0, in_memory=0)
    name = f"{next(iter(fault.values())):03d}.jpg"
    with pytest.raises(UserError, match=rf"1\.tar: {name}.*sha256"):
        list(islice(batches.stream(), COUNT // 2))


def test_hashes_of_other_files_are_noticed_at_the_start(tmp_path):
    with pytest.raises(UserError, match=r"1\.tar: 005\.jpg.*trust_hashes"):
        read_folder(make_hashed_shards(tmp_path, stated=5), options=TRUSTING)


def test_only_shards_state_hashes(tmp_path):
    captioned(tmp_path, 2)
    with pytest.raises(UserError, match="trust_hashes"):
        read_folder(tmp_path, options=TRUSTING)
