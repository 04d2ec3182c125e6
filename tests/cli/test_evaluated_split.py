"""Which images evaluate.py measures with."""

import pytest

from dataset.captions.variants import CaptionChoice
from stages.evaluation.data import MeasuredCaptions, chosen_pairs
from tests.helpers.images import captioned


def test_a_split_that_is_named_is_evaluated_whole(tmp_path, capsys):
    for split, count in (("train", 9), ("test", 5)):
        captioned(tmp_path / "data" / split, count)
    config = MeasuredCaptions(data=tmp_path / "data", split="test", held_out=0.5)
    prompts, reconstructed = chosen_pairs(config, CaptionChoice(languages={}))
    names = {pair.path.name for pair in reconstructed}
    assert names == {pair.path.name for pair in prompts} and len(names) == 5
    assert "'test': 5" in capsys.readouterr().out


@pytest.mark.parametrize("split", ["train", "test"])
def test_without_splits_the_trainings_say_what_is_held_out(tmp_path, split):
    config = MeasuredCaptions(data=captioned(tmp_path / split, 8), held_out=0.5)
    prompts, reconstructed = chosen_pairs(config, CaptionChoice(languages={}))
    names = [pair.path.name for pair in [*prompts, *reconstructed]]
    assert len(set(names)) == 8 and len(prompts) and len(reconstructed)
