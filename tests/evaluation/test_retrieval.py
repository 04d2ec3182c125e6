"""Recall against cases that can be counted by hand."""

import pytest
import torch

from evaluation.retrieval import recall_at


def test_counted_by_hand():
    similarity = torch.tensor(
        [
            [0.9, 0.1, 0.2, 0.3],  # first
            [0.8, 0.5, 0.1, 0.0],  # second
            [0.9, 0.8, 0.7, 0.1],  # third
            [0.4, 0.3, 0.2, 0.1],  # last
        ]
    )
    assert recall_at(similarity, "abcd", ks=(1, 2, 3, 4)) == {1: 0.25, 2: 0.5, 3: 0.75, 4: 1.0}
    assert recall_at(similarity.T, "abcd", ks=(2,)) == {2: 0.75}  # columns ask another question


def test_any_candidate_with_the_same_caption_is_right():
    similarity = torch.tensor([[0.1, 0.2, 0.9], [0.2, 0.1, 0.3], [0.9, 0.8, 0.1]])
    assert recall_at(similarity, ["apple", "pear", "apple"], ks=(1, 2)) == {1: 2 / 3, 2: 2 / 3}
    assert recall_at(similarity, ["apple", "pear", "plum"], ks=(1, 2))[1] == 0


def test_chance_level_of_noise():
    torch.manual_seed(0)
    recalls = recall_at(torch.rand(1000, 1000), range(1000), ks=(1, 100, 1000))
    assert recalls[100] == pytest.approx(0.1, abs=0.03)
    assert recalls[1] < 0.01 and recalls[1000] == 1


@pytest.mark.parametrize("value", [0.0, float("nan")])
def test_a_network_that_tells_nothing_apart_scores_zero(value):
    assert recall_at(torch.full((5, 5), value), "abcde", ks=(1, 4)) == {1: 0, 4: 0}


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="one row and one column"):
        recall_at(torch.zeros(3, 4), "abc", ks=(1,))
