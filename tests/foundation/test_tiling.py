"""Tiles cover a side without gaps, and their blending weights add up to 1."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from foundation.tiling import blend_ramp, tile_starts


def test_tiles_begin_a_stride_apart_and_the_last_one_ends_at_the_end():
    assert tile_starts(50, 16, 4) == [0, 12, 24, 34]
    assert tile_starts(16, 16, 4) == tile_starts(9, 16, 4) == [0]


def test_evenly_spread_tiles_share_about_equally_much():
    assert tile_starts(50, 16, 4, evenly=True) == [0, 11, 23, 34]
    assert tile_starts(5, 8, 4, evenly=True) == [0]


@given(
    size=st.integers(1, 200),
    tile=st.integers(1, 40),
    share=st.floats(0, 1, exclude_max=True),
    evenly=st.booleans(),
)
def test_tiles_cover_the_side_and_share_at_least_the_overlap(size, tile, share, evenly):
    overlap = int(share * tile)
    starts = tile_starts(size, tile, overlap, evenly=evenly)
    assert starts[0] == 0 and starts[-1] == max(0, size - tile)
    strides = [second - first for first, second in pairwise(starts)]
    assert all(0 < stride <= tile - overlap for stride in strides)


@pytest.mark.parametrize("overlap", [1, 2, 4, 8])
def test_weights_of_two_tiles_add_up_to_one_where_they_overlap(overlap):
    ramp = blend_ramp(16, overlap)
    torch.testing.assert_close(ramp[-overlap:] + ramp[:overlap], torch.ones(overlap))
    assert (ramp > 0).all() and ramp.max() <= 1


def test_without_overlap_every_position_counts_in_full():
    assert torch.equal(blend_ramp(7, 0), torch.ones(7))
