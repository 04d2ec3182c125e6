"""Which pairs are held out."""

from dataclasses import replace
from pathlib import Path

import pytest

from dataset.folder import Folder
from dataset.split import split
from dataset.table import Pairs
from tests.helpers.images import table


def made_up(count: int, root: str = "/data") -> Folder:
    names = {f"{k}.png": (str(k),) for k in range(count)}
    return Folder(Path(root), "made up", table(names, Path(root)).pairs)


def names(pairs: Pairs) -> set[str]:
    return {pair.path.name for pair in pairs}


def test_a_split_is_complete_and_about_as_large_as_asked():
    folder = made_up(2000)
    train, held_out = split(folder, 0.1)
    both = sorted(train + held_out, key=lambda pair: int(pair.captions[0]))
    assert both == list(folder.pairs)
    assert 150 < len(held_out) < 250


def test_a_split_depends_on_names_and_neither_on_order_nor_place_nor_company():
    _, held_out = split(made_up(1000), 0.1)
    few, many = made_up(1000, "/elsewhere"), made_up(1500)
    few = replace(few, pairs=few.pairs[::-1])
    assert names(split(few, 0.1)[1]) == names(held_out)
    assert names(held_out) < names(split(many, 0.1)[1])
    assert names(held_out) < names(split(made_up(1000), 0.2)[1])


def test_a_split_leaves_something_on_both_sides():
    for count in range(2, 12):
        for fraction in (0.01, 0.99):
            train, held_out = split(made_up(count), fraction)
            assert train
            assert held_out
    assert len(split(made_up(3), 0)[1]) == 0
    with pytest.raises(ValueError, match="leaves none"):
        split(made_up(1), 0.5)
    with pytest.raises(ValueError, match="must lie in"):
        split(made_up(3), 1)
