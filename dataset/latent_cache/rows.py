"""Assignment of pairs to rows of the latent cache: equal images share a row, so do captions."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
from jaxtyping import Int64, Shaped, UInt8

from dataset.buckets import Buckets
from dataset.table import PairList, captions_hash, ranges


@dataclass(frozen=True)
class CacheRows:
    """The content of each row, and the rows of each pair.

    Args:
        images: for each bucket, the pairs whose images are its rows.
        image_rows: row of each pair's image, in the array of its bucket.
        shape: bucket of each pair's image.
        captions: the caption of each row; row 0 is the empty caption.
        caption_rows: row of every caption of every pair.
        caption_starts: where the captions of each pair begin in caption_rows.
    """

    images: list[Int64[np.ndarray, " _"]]
    image_rows: Int64[np.ndarray, " pairs"]
    shape: UInt8[np.ndarray, " pairs"]
    captions: Sequence[str]
    caption_rows: Int64[np.ndarray, " captions"]
    caption_starts: Int64[np.ndarray, " pairs_plus_1"]


def assign_rows(pairs: PairList, buckets: Buckets | None) -> CacheRows:
    """Assign a row to each image and each caption, in the order of their first occurrence."""
    shape = buckets.assign(pairs) if buckets else np.zeros(len(pairs), np.uint8)
    hashes = np.ascontiguousarray(pairs.column("sha256")).view("V32").ravel()
    image_rows = np.zeros(len(pairs), np.int64)
    images: list[Int64[np.ndarray, " _"]] = []
    for k in range(len(buckets.shapes) if buckets else 1):
        members = np.flatnonzero(shape == k)
        rows, firsts = number_unique(hashes[members])
        image_rows[members] = rows
        images.append(members[firsts])
    starts, positions = caption_positions(pairs)
    keys = bytearray(captions_hash([""]))
    for position in positions.tolist():
        keys += captions_hash([pairs.table.captions[position]])
    caption_rows, firsts = number_unique(np.frombuffer(keys, "V16"))
    captions = DistinctCaptions(pairs.table.captions, positions[firsts[1:] - 1])
    return CacheRows(images, image_rows, shape, captions, caption_rows[1:], starts)


def caption_positions(
    pairs: PairList,
) -> tuple[Int64[np.ndarray, " pairs_plus_1"], Int64[np.ndarray, " captions"]]:
    """Return where each pair's captions begin, and where all captions lie in `table.captions`."""
    positions, starts = ranges(pairs.table.caption_starts, pairs.rows)
    return starts, positions


class DistinctCaptions(Sequence[str]):
    """The empty caption, then the captions at some positions, read when they are asked for."""

    def __init__(self, strings: Sequence[str], positions: Int64[np.ndarray, " distinct"]):
        self.strings, self.positions = strings, positions

    def __len__(self) -> int:
        return 1 + len(self.positions)

    @overload
    def __getitem__(self, k: int) -> str: ...
    @overload
    def __getitem__(self, k: slice) -> list[str]: ...
    def __getitem__(self, k: int | slice) -> str | list[str]:
        if isinstance(k, slice):
            return [self[j] for j in range(len(self))[k]]
        return "" if k == 0 else self.strings[int(self.positions[k - 1])]


def number_unique(
    keys: Shaped[np.ndarray, " n"],
) -> tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, " rows"]]:
    """Number the distinct keys in the order of their first occurrence.

    Returns:
        The number of each key, and the position where each number occurs first.
    """
    _, firsts, inverse = np.unique(keys, return_index=True, return_inverse=True)
    order = firsts.argsort()
    numbers = np.empty_like(order)
    numbers[order] = np.arange(len(order))
    return numbers[inverse.ravel()], firsts[order]
