"""Which pairs are held out."""

from pathlib import Path

import pytest

from imagetext.folder import Folder, Pair
from imagetext.split import split


def made_up(count: int, root: str = "/data") -> Folder:
    pairs = [Pair(Path(root, f"{k}.png"), (str(k),)) for k in range(count)]
    return Folder(Path(root), "made up", pairs, [])


def names(pairs: list[Pair]) -> set[str]:
    return {pair.path.name for pair in pairs}


def test_a_split_is_complete_and_about_as_large_as_asked():
    folder = made_up(2000)
    train, held_out = split(folder, 0.1)
    assert sorted(train + held_out, key=lambda pair: int(pair.captions[0])) == folder.pairs
    assert 150 < len(held_out) < 250


def test_a_split_depends_on_names_and_neither_on_order_nor_place_nor_company():
    _, held_out = split(made_up(1000), 0.1)
    few, many = made_up(1000, "/elsewhere"), made_up(1500)
    few.pairs.reverse()
    assert names(split(few, 0.1)[1]) == names(held_out)
    assert names(held_out) < names(split(many, 0.1)[1])
    assert names(held_out) < names(split(made_up(1000), 0.2)[1])


def test_a_split_leaves_something_on_both_sides():
    for count in range(2, 12):
        for fraction in (0.01, 0.99):
            train, held_out = split(made_up(count), fraction)
            assert train
            assert held_out
    assert split(made_up(3), 0)[1] == []
    with pytest.raises(ValueError, match="leaves none"):
        split(made_up(1), 0.5)
    with pytest.raises(ValueError, match="must lie in"):
        split(made_up(3), 1)
