"""Assignment of pairs to rows of the latent cache: equal images share a row, so do captions."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int, Int64, UInt8, UInt64

from dataset.buckets import Buckets
from dataset.captions.choice import CaptionDraws, ChosenCaptions, caption_draws
from dataset.captions.rows import captions_hash
from dataset.table import TAKEN_AT_ONCE, ComputedStrings, PackedStrings, PairList


@dataclass(frozen=True)
class CacheRows:
    """The content of each row, and the rows of each pair.

    Args:
        images: for each bucket, the pairs whose images are its rows.
        image_rows: row of each pair's image, in the array of its bucket.
        shape: bucket of each pair's image.
        captions: the caption of each row; row 0 is the empty caption.
        caption_rows: row of every caption of every pair, or of every variant of one.
        caption_starts: where the captions of each pair begin in caption_rows.
        caption_chances: as in `CaptionDraws`.
    """

    images: list[Int64[np.ndarray, " _"]]
    image_rows: Int64[np.ndarray, " pairs"]
    shape: UInt8[np.ndarray, " pairs"]
    captions: Sequence[str]
    caption_rows: Int64[np.ndarray, " captions"]
    caption_starts: Int64[np.ndarray, " pairs_plus_1"]
    caption_chances: Float64[np.ndarray, " captions"] | None = None


def assign_rows(
    pairs: PairList, buckets: Buckets | None, draws: CaptionDraws | None = None
) -> CacheRows:
    """Assign a row to each image and each caption, in the order of their first occurrence.

    draws: the texts of the pairs; None: their captions.
    """
    shape = buckets.assign(pairs) if buckets else np.zeros(len(pairs), np.uint8)
    image_rows = np.zeros(len(pairs), np.int64)
    images: list[Int64[np.ndarray, " _"]] = []
    for k in range(len(buckets.shapes) if buckets else 1):
        members = np.flatnonzero(shape == k)
        rows, firsts = number_unique(pairs.table.columns["sha256"], pairs.rows[members])
        image_rows[members] = rows
        images.append(members[firsts])
    draws = draws or caption_draws(pairs)
    keys = caption_keys(pairs, draws)
    caption_rows, firsts = number_unique(keys, np.arange(len(keys)))
    captions = DistinctCaptions(draws.texts, firsts[1:] - 1)
    return CacheRows(
        images, image_rows, shape, captions, caption_rows[1:], draws.starts, draws.chances
    )


def caption_keys(
    pairs: PairList, draws: CaptionDraws
) -> UInt8[np.ndarray, "captions_plus_1 bytes"]:
    """Return the hash of the empty caption and that of each caption.

    The table has the hash of all captions of an image with their marks; for one with a single
    caption without marks, and of which no variants are drawn, it is the hash of that.
    """
    table, starts = pairs.table, draws.starts
    is_marked = table.caption_weights is not None or table.caption_languages is not None
    is_varied = not isinstance(draws.texts, ChosenCaptions)
    is_plain = isinstance(table.captions, PackedStrings) and not is_marked and not is_varied
    keys = np.empty((1 + len(draws.texts), len(captions_hash([""]))), np.uint8)
    keys[0] = np.frombuffer(captions_hash([""]), np.uint8)
    for start, (hashes,) in pairs.pieces("captions_hash"):
        own = starts[start : start + len(hashes) + 1]
        single = (np.diff(own) == 1) & is_plain
        keys[1 + own[:-1][single]] = hashes[single]
        for k in np.flatnonzero(~single).tolist():
            for j in range(int(own[k]), int(own[k + 1])):
                keys[1 + j] = np.frombuffer(captions_hash([draws.texts[j]]), np.uint8)
    return keys


class DistinctCaptions(ComputedStrings):
    """The empty caption, then the captions at some positions, read when they are asked for."""

    def __init__(self, strings: Sequence[str], positions: Int64[np.ndarray, " distinct"]):
        self.strings, self.positions = strings, positions

    def __len__(self) -> int:
        return 1 + len(self.positions)

    def string(self, k: int) -> str:
        return "" if k == 0 else self.strings[int(self.positions[k - 1])]


def number_unique(
    keys: UInt8[np.ndarray, "n bytes"], rows: Int[np.ndarray, " rows"]
) -> tuple[Int64[np.ndarray, " rows"], Int64[np.ndarray, " distinct"]]:
    """Number the distinct keys among keys[rows] in the order of their first occurrence.

    They are sorted by 64 bits of theirs, which takes a tenth of the time that whole keys take.
    Where these are equal, whole keys are compared.

    Returns:
        The number of each key, and the position where each number occurs first.
    """
    short = fold(keys, rows)
    order = short.argsort(kind="stable")
    is_new = np.ones(len(rows), bool)
    for start in range(1, len(rows), TAKEN_AT_ONCE):
        own = order[start : start + TAKEN_AT_ONCE]
        before = order[start - 1 : start - 1 + len(own)]
        same = np.flatnonzero(short[own] == short[before])
        if (keys[rows[own[same]]] != keys[rows[before[same]]]).any():
            return number_whole_keys(keys, rows)
        is_new[start + same] = False
    del short
    firsts = order[is_new]
    numbers = np.empty(len(firsts), np.int64)
    numbers[firsts.argsort()] = np.arange(len(firsts))
    firsts.sort()
    result = np.empty(len(rows), np.int64)
    group = 0
    for start in range(0, len(rows), TAKEN_AT_ONCE):
        groups = group + is_new[start : start + TAKEN_AT_ONCE].cumsum()
        result[order[start : start + TAKEN_AT_ONCE]] = numbers[groups - 1]
        group = int(groups[-1])
    return result, firsts


def fold(
    keys: UInt8[np.ndarray, "n bytes"], rows: Int[np.ndarray, " rows"]
) -> UInt64[np.ndarray, " rows"]:
    """Return 64 bits of each key: the exclusive or of its 8-byte words."""
    result = np.empty(len(rows), np.uint64)
    for start in range(0, len(rows), TAKEN_AT_ONCE):
        piece = np.ascontiguousarray(keys[rows[start : start + TAKEN_AT_ONCE]])
        words = piece.view(np.uint64)
        result[start : start + len(words)] = np.bitwise_xor.reduce(words, axis=1)
    return result


def number_whole_keys(
    keys: UInt8[np.ndarray, "n bytes"], rows: Int[np.ndarray, " rows"]
) -> tuple[Int64[np.ndarray, " rows"], Int64[np.ndarray, " distinct"]]:
    """Return the same as `number_unique`, slowly, for keys that are equal in 64 bits by chance."""
    whole = np.ascontiguousarray(keys[rows]).view(f"V{keys.shape[1]}").ravel()
    _, firsts, inverse = np.unique(whole, return_index=True, return_inverse=True)
    order = firsts.argsort()
    numbers = np.empty_like(order)
    numbers[order] = np.arange(len(order))
    return numbers[inverse.ravel()], firsts[order]
