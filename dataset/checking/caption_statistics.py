"""Captions in numbers: how long they are, which words they have, which are equal or missing."""

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64

from dataset.captions.choice import SHOWN_LANGUAGES, count_languages
from dataset.folder import Folder
from dataset.table import ranges
from foundation.errors import listed, one_line

WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
# Signs without width that say in which direction text runs.
DIRECTION = re.compile("[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
TOP_WORDS = 12
TOP_EQUAL = 3
MOST_WORDS = 1_000_000  # that are counted at the same time


@dataclass(frozen=True)
class CaptionStatistics:
    """The captions of a folder.

    Args:
        captions: how many there are; an image may have several.
        distinct: how many different ones.
        without: images without a caption.
        unit: of the lengths, "tokens" with start and end, or "words".
        lengths: length -> how many captions.
        room: tokens that the text encoder reads; longer captions are cut.
        cut: captions that are longer; None if tokens were not counted.
        words: the most frequent words -> captions that have them.
        with_direction: captions with invisible marks of the direction of text.
        equal: captions that several images have -> how many images.
        languages: how many captions are in each; "" where it is not said. Empty if none says it.
        weights: the least and the largest; None if all are 1.
    """

    captions: int
    distinct: int
    without: int
    unit: str
    lengths: dict[int, int]
    room: int
    cut: int | None
    words: dict[str, int]
    with_direction: int
    equal: dict[str, int]
    languages: dict[str, int]
    weights: tuple[float, float] | None

    @property
    def all_cut(self) -> bool:
        return bool(self.captions) and self.cut == self.captions


def count_captions(
    folder: Folder, room: int, count_tokens: Callable[[str], int] | None
) -> CaptionStatistics:
    """Read all captions twice: equal ones are found by hashes, and each text is looked at once.

    So memory holds about a hundred bytes per caption. All numbers are exact, but those of words
    where there are more than MOST_WORDS different ones: then rare words may be counted too low.

    Args:
        room: tokens that the text encoder reads, including its start and end marks.
        count_tokens: returns the number of tokens of a text, including the marks.
    """
    table, pairs = folder.pairs.table, folder.with_caption
    texts, weights = table.captions, table.caption_weights
    positions, _ = ranges(table.caption_starts, pairs.rows)
    firsts, counts = distinct_texts(texts, positions)
    lengths: Counter[int] = Counter()
    words: Counter[str] = Counter()
    with_direction = 0
    for position, count in zip(firsts, counts, strict=True):
        text = texts[int(position)]
        lengths[count_tokens(text) if count_tokens else len(text.split())] += int(count)
        with_direction += int(count) if DIRECTION.search(text) else 0
        for word in set(WORD.findall(text.lower())):
            words[word] += int(count)
        if len(words) > MOST_WORDS:
            words = Counter(dict(words.most_common(MOST_WORDS // 2)))
    most = np.argsort(-counts, kind="stable")[:TOP_EQUAL]
    cut = sum(count for length, count in lengths.items() if length > room)
    return CaptionStatistics(
        captions=len(positions),
        distinct=len(firsts),
        without=len(folder.pairs) - len(pairs),
        unit="tokens" if count_tokens else "words",
        lengths=dict(sorted(lengths.items())),
        room=room,
        cut=cut if count_tokens else None,
        words=dict(words.most_common(TOP_WORDS)),
        with_direction=with_direction,
        equal={texts[int(firsts[k])]: int(counts[k]) for k in most if counts[k] > 1},
        languages=count_languages(folder.pairs),
        weights=None if weights is None else (float(weights.min()), float(weights.max())),
    )


def distinct_texts(
    texts: Sequence[str], positions: Int64[np.ndarray, " captions"]
) -> tuple[Int64[np.ndarray, " distinct"], Int64[np.ndarray, " distinct"]]:
    """Return where each different text stands first, in that order, and how often it occurs.

    Texts with equal hashes of 64 bits count as equal: with 10 million texts, the chance that any
    two differ in spite of it is one in 370,000.
    """
    hashes = np.fromiter((text_hash(texts[int(k)]) for k in positions), np.uint64, len(positions))
    _, firsts, counts = np.unique(hashes, return_index=True, return_counts=True)
    order = np.argsort(firsts)
    return positions[firsts[order]], counts[order]


def text_hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())


def describe_words(statistics: CaptionStatistics) -> list[str]:
    """Return the lines on words, equal captions, languages and weights."""
    words = listed([f"{w} {n}" for w, n in statistics.words.items()], limit=TOP_WORDS)
    lines = [f"  most frequent words, with the number of captions: {words}"] if words else []
    if statistics.with_direction:
        lines.append(
            f"  {statistics.with_direction} captions have invisible marks of direction, such as "
            "U+200F: text encoders read them, so the same words without them are another prompt"
        )
    for text, count in statistics.equal.items():
        lines.append(f"  {count} images have the caption {one_line(text, 100)!r}")
    if statistics.languages:
        counts = [f"{name or 'not said'} {n}" for name, n in statistics.languages.items()]
        lines.append(f"  captions by language: {listed(counts, limit=SHOWN_LANGUAGES)}")
    if statistics.weights is not None:
        least, largest = statistics.weights
        lines.append(f"  weights of captions are from {least:g} to {largest:g}")
    return lines
