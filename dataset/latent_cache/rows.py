"""Which row of the latent cache belongs to what: equal images share one, as do equal captions."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64, Shaped, UInt8

from dataset.buckets import Buckets
from dataset.table import Pairs, captions_hash


@dataclass(frozen=True)
class Rows:
    """What belongs to each row, and the rows of each pair.

    Args:
        images: for each shape the pairs whose images make its rows.
        image_rows: of each pair, in the array of its shape.
        shape: of each pair's image, its number.
        captions: of the rows; row 0 is the empty one.
        caption_rows: of every caption of every pair.
        caption_starts: where a pair's captions begin in caption_rows.
    """

    images: list[Int64[np.ndarray, " _"]]
    image_rows: Int64[np.ndarray, " pairs"]
    shape: UInt8[np.ndarray, " pairs"]
    captions: Sequence[str]
    caption_rows: Int64[np.ndarray, " captions"]
    caption_starts: Int64[np.ndarray, " pairs_1"]


def assign_rows(pairs: Pairs, buckets: Buckets | None) -> Rows:
    shape = buckets.of(pairs) if buckets else np.zeros(len(pairs), np.uint8)
    hashes = np.ascontiguousarray(pairs.column("sha256")).view("V32").ravel()
    image_rows = np.zeros(len(pairs), np.int64)
    images = []
    for k in range(len(buckets.shapes) if buckets else 1):
        members = np.flatnonzero(shape == k)
        own, firsts = numbered(hashes[members])
        image_rows[members] = own
        images.append(members[firsts])
    table = pairs.table
    counts = np.diff(table.caption_starts)[pairs.rows]
    starts = np.concatenate([[0], counts.cumsum()])
    within = np.arange(starts[-1]) - np.repeat(starts[:-1], counts)
    places = np.repeat(table.caption_starts[pairs.rows], counts) + within  # in table.captions
    keys = bytearray(captions_hash([""]))
    for place in places.tolist():
        keys += captions_hash([table.captions[place]])
    caption_rows, firsts = numbered(np.frombuffer(keys, "V16"))
    texts = Texts(table.captions, places, firsts)
    return Rows(images, image_rows, shape, texts, caption_rows[1:], starts)


class Texts(Sequence[str]):
    """The distinct captions, read as they are needed."""

    def __init__(self, strings: Sequence[str], places: np.ndarray, firsts: np.ndarray):
        self.strings, self.places, self.firsts = strings, places, firsts

    def __len__(self) -> int:
        return len(self.firsts)

    def __getitem__(self, k: int | slice) -> str | list[str]:
        if isinstance(k, slice):
            return [self[j] for j in range(len(self))[k]]
        return "" if k == 0 else self.strings[int(self.places[self.firsts[k] - 1])]


def numbered(
    keys: Shaped[np.ndarray, " n"],
) -> tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, " rows"]]:
    """The row of each key if equal keys share one, and the position of the first of each row."""
    _, firsts, inverse = np.unique(keys, return_index=True, return_inverse=True)
    order = firsts.argsort()
    row_of = np.empty_like(order)
    row_of[order] = np.arange(len(order))
    return row_of[inverse.ravel()], firsts[order]
