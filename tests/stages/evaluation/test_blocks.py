"""Blocks of an evaluation: what a signal stops is said as it is."""

import pytest
import torch

from stages.evaluation.blocks import Blocks


@pytest.mark.parametrize(("stopped_at", "saved"), [(0, "none of 5"), (4, "4 of 5")])
def test_a_stop_says_how_many_images_are_saved(tmp_path, stopped_at, saved):
    def compute(images, pixels):
        if stopped_at in images:
            raise KeyboardInterrupt("stopped by SIGINT.")
        return {"x": torch.zeros(len(images), 1)}

    blocks = Blocks(tmp_path, 5, size=2)
    with pytest.raises(KeyboardInterrupt, match=f"stopped while drawing: {saved} images saved"):
        blocks.fill(lambda images: torch.zeros(1), compute, "drawing")
    done = Blocks(tmp_path, 5, size=2)
    done.fill(lambda images: torch.zeros(1), lambda k, _: {"x": torch.ones(len(k), 1)}, "drawing")
    assert int(done.rows("x").sum()) == 5 - (stopped_at and 4)
