"""Captions in numbers: how long they are, which words they have, which are equal or missing."""

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from dataset.captions.choice import SHOWN_LANGUAGES, count_languages
from dataset.folder import Folder
from dataset.table import NO_CAPTION
from foundation.errors import listed, one_line

WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
TOP_WORDS = 12
TOP_EQUAL = 3


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
    equal: dict[str, int]
    languages: dict[str, int]
    weights: tuple[float, float] | None

    @property
    def all_cut(self) -> bool:
        return bool(self.captions) and self.cut == self.captions


def count_captions(
    folder: Folder, room: int, count_tokens: Callable[[str], int] | None
) -> CaptionStatistics:
    """Read all captions once.

    Args:
        room: tokens that the text encoder reads, including its start and end marks.
        count_tokens: returns the number of tokens of a text, including the marks.
    """
    counts: Counter[str] = Counter()
    without = 0
    for pair in folder.pairs:
        if pair.captions == NO_CAPTION:
            without += 1
        else:
            counts.update(pair.captions)
    weights = folder.pairs.table.caption_weights
    lengths: Counter[int] = Counter()
    words: Counter[str] = Counter()
    for text, count in counts.items():
        length = count_tokens(text) if count_tokens else len(text.split())
        lengths[length] += count
        for word in set(WORD.findall(text.lower())):
            words[word] += count
    cut = sum(count for length, count in lengths.items() if length > room)
    return CaptionStatistics(
        captions=counts.total(),
        distinct=len(counts),
        without=without,
        unit="tokens" if count_tokens else "words",
        lengths=dict(sorted(lengths.items())),
        room=room,
        cut=cut if count_tokens else None,
        words=dict(words.most_common(TOP_WORDS)),
        equal={t: n for t, n in counts.most_common(TOP_EQUAL) if n > 1},
        languages=count_languages(folder.pairs),
        weights=None if weights is None else (float(weights.min()), float(weights.max())),
    )


def describe_words(statistics: CaptionStatistics) -> list[str]:
    """Return the lines on words, equal captions, languages and weights."""
    words = listed([f"{w} {n}" for w, n in statistics.words.items()], limit=TOP_WORDS)
    lines = [f"  most frequent words, with the number of captions: {words}"] if words else []
    for text, count in statistics.equal.items():
        lines.append(f"  {count} images have the caption {one_line(text, 100)!r}")
    if statistics.languages:
        counts = [f"{name or 'not said'} {n}" for name, n in statistics.languages.items()]
        lines.append(f"  captions by language: {listed(counts, limit=SHOWN_LANGUAGES)}")
    if statistics.weights is not None:
        least, largest = statistics.weights
        lines.append(f"  weights of captions are from {least:g} to {largest:g}")
    return lines
