"""Tables of pairs, selections of their rows, and the split into training and held-out pairs."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataset.folder import read_folder
from dataset.table import PackedStrings, PairList, split
from foundation.errors import UserError
from tests.helpers.images import captioned, table


@given(st.lists(st.text(st.characters(codec="utf-8"))))
def test_packed_strings_come_back(texts):
    content = b"".join(text.encode() + b"\n" for text in texts)
    starts = np.cumsum([0, *(len(text.encode()) + 1 for text in texts)])
    packed = PackedStrings(np.frombuffer(content, np.uint8), starts)
    assert list(packed) == texts
    assert packed[1:] == texts[1:]


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


def test_a_pickled_table_holds_only_the_path_of_its_files(tmp_path):
    captioned(tmp_path, 40)
    pairs = read_folder(tmp_path).pairs
    pickled = pickle.dumps(pairs)
    assert b"picture number 7" not in pickled
    assert list(pickle.loads(pickled)) == list(pairs)


def test_a_table_in_memory_is_pickled_with_its_content():
    pairs = table({"a.png": ["x"]}).pairs
    assert list(pickle.loads(pickle.dumps(pairs))) == list(pairs)


# Split --------------------------------------------------------------------------------------------


def numbered(count: int, root: str = "/data") -> PairList:
    return table({f"{k}.png": (str(k),) for k in range(count)}, Path(root)).pairs


def names(pairs: PairList) -> set[str]:
    return {pair.path.name for pair in pairs}


def test_a_split_is_complete_and_has_about_the_fraction_that_was_asked_for():
    pairs = numbered(2000)
    train, held_out = split(pairs, 0.1)
    both = sorted(train + held_out, key=lambda pair: int(pair.captions[0]))
    assert both == list(pairs)
    assert 150 < len(held_out) < 250


def test_a_split_depends_only_on_the_names():
    held_out = names(split(numbered(1000), 0.1)[1])
    moved = numbered(1000, "/elsewhere")
    assert names(split(moved[::-1], 0.1)[1]) == held_out
    assert held_out < names(split(numbered(1500), 0.1)[1])
    assert held_out < names(split(numbered(1000), 0.2)[1])


def test_the_split_of_shards_depends_on_shard_and_member_names():
    whole = table({f"{k:03d}.tar/{j:04d}.png": ("x",) for k in range(10) for j in range(50)})
    some = list(whole.names)[100:200]
    part = table(dict.fromkeys(some, ("y",)))
    assert (part.columns["place"] == whole.columns["place"][100:200]).all()


@pytest.mark.parametrize("count", range(2, 12))
@pytest.mark.parametrize("fraction", [0.01, 0.99])
def test_no_side_of_a_split_is_empty(count, fraction):
    train, held_out = split(numbered(count), fraction)
    assert train and held_out


def test_nothing_is_held_out_if_the_fraction_is_0():
    train, held_out = split(numbered(3), 0)
    assert (len(train), len(held_out)) == (3, 0)


@pytest.mark.parametrize(("count", "fraction"), [(1, 0.5), (3, 1), (3, -0.1)])
def test_a_split_that_is_not_possible_is_refused(count, fraction):
    with pytest.raises(UserError):
        split(numbered(count), fraction)
