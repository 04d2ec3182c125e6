"""Attributes: words of captions, and the variants of captions with other words."""

import pytest
import torch

from evaluation.attributes import Attribute, fit
from foundation.errors import UserError

TONES = ("light", "medium-light", "medium")
NONE = -1


def test_words_are_found_whole_and_the_longest_first():
    attribute = Attribute(TONES)
    captions = ["woman: Medium-light skin", "a light", "lights", "light on medium", "dog"]
    assert attribute.labels(captions, NONE).tolist() == [1, 0, NONE, NONE, NONE]
    assert attribute.variants("a medium-light hand") == [
        "a light hand",
        "a medium-light hand",
        "a medium hand",
    ]


def test_words_with_special_letters_are_taken_literally():
    attribute = Attribute(("c++", r"\1"))
    assert attribute.labels(["a c++ book", r"a \1 book"], NONE).tolist() == [0, 1]
    assert attribute.variants("a c++ book") == ["a c++ book", r"a \1 book"]


def test_scores_compare_an_image_with_its_own_caption_alone():
    words = ("red", "blue")
    vectors = {"red ball": [1.0, 0.0], "blue ball": [0.0, 1.0], "a ball": [0.0, 0.0]}

    def encode(texts: list[str]) -> torch.Tensor:
        return torch.tensor([vectors[text] for text in texts])

    images = torch.tensor([[0.6, 0.8], [0.0, 1.0], [0.8, 0.6]])
    variants = Attribute(words).encode_variants(["red ball", "a ball", "blue ball"], encode)
    scores = fit(images, variants)
    torch.testing.assert_close(scores, torch.tensor([[0.6, 0.8], [0.0, 0.0], [0.8, 0.6]]))


@pytest.mark.parametrize("words", [("red",), ("red", "Red"), ("red", " ")])
def test_words_that_exclude_nothing_are_refused(words):
    with pytest.raises(UserError, match="two or more different words"):
        Attribute(words)
