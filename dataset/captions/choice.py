"""The texts that each image can be trained on, and how likely each of them is drawn."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float64, Int, Int64
from torch import Tensor

from dataset.captions.rows import captions_hash
from dataset.captions.variants import CaptionChoice, TagVariants
from dataset.source import as_lines
from dataset.table import NO_CAPTION, ComputedStrings, PackedStrings, PairList, Table, ranges
from foundation.errors import UserError, listed

NO_CHOICE = CaptionChoice(languages={})
SHOWN_LANGUAGES = 20


# Choosing -----------------------------------------------------------------------------------------


def choose_captions(pairs: PairList, choice: CaptionChoice) -> PairList:
    """Return the same images with the captions that are chosen, and with the added words.

    Raises:
        UserError: images have no caption in the languages, or none with a weight above 0.
    """
    table = pairs.table
    if choice.languages:
        table = choose_languages(pairs, choice.languages)
    if table.caption_weights is not None:
        require_weights(PairList(table, pairs.rows))
    if choice.prefix.strip() or choice.suffix.strip():
        texts = table.captions
        if isinstance(texts, ChosenCaptions):
            texts = ChosenCaptions(texts.strings, texts.positions, choice)
        else:
            texts = ChosenCaptions(texts, np.arange(len(texts)), choice)
        table = replace(table, captions=texts, folder=None)
    return PairList(table, pairs.rows)


def without_captions(pairs: PairList) -> PairList:
    """Return the same images without captions, for models that read none."""
    count = len(pairs.table)
    no_caption = np.frombuffer(captions_hash(NO_CAPTION), np.uint8)
    hashes = np.broadcast_to(no_caption, (count, len(no_caption)))
    table = replace(
        pairs.table,
        captions=PackedStrings(np.full(count, ord("\n"), np.uint8), np.arange(count + 1)),
        caption_starts=np.arange(count + 1),
        columns={**pairs.table.columns, "captions_hash": hashes},
        folder=None,
        caption_weights=None,
        caption_languages=None,
    )
    return PairList(table, pairs.rows)


class ChosenCaptions(ComputedStrings):
    """Some of the captions of a table with words around them, made when they are asked for.

    positions: of the captions in `strings`.
    """

    def __init__(
        self,
        strings: Sequence[str],
        positions: Int64[np.ndarray, " chosen"],
        choice: CaptionChoice = NO_CHOICE,
    ):
        self.strings, self.positions, self.choice = strings, positions, choice

    def __len__(self) -> int:
        return len(self.positions)

    def string(self, k: int) -> str:
        return self.choice.add_words(self.strings[int(self.positions[k])])

    def variant(self, k: int, number: int, variants: TagVariants) -> str:
        """Return a variant of a caption. The added words are no tags, and stay where they are."""
        text = self.strings[int(self.positions[k])]
        return self.choice.add_words(variants.make(text, number))


def choose_languages(pairs: PairList, languages: Mapping[str, float | None]) -> Table:
    """Return the table with only the captions of these languages.

    Raises:
        UserError: some of the pairs have none.
    """
    table = pairs.table
    counts = np.diff(table.caption_starts)
    image = np.repeat(np.arange(len(table)), counts)  # of each caption
    is_chosen = captions_in(table, languages)
    no_caption = np.frombuffer(captions_hash(NO_CAPTION), np.uint8)
    has_none = (table.columns["captions_hash"] == no_caption).all(axis=1)
    left = np.bincount(image[is_chosen], minlength=len(table))
    missing = pairs.where(((left == 0) & ~has_none)[pairs.rows])
    if missing:
        raise UserError(
            f"{len(missing)} of {len(pairs)} images have no caption in the languages "
            f"{listed(list(languages))} (caption_languages):\n{as_lines(missing.paths)}\n"
            f"{describe_languages(table)} Choose other languages, add captions, or remove these "
            "images."
        )
    is_chosen |= has_none[image]
    positions = np.flatnonzero(is_chosen)
    starts = np.concatenate([[0], np.bincount(image[positions], minlength=len(table)).cumsum()])
    return replace(
        table,
        captions=ChosenCaptions(table.captions, positions),
        caption_starts=starts,
        folder=None,
        caption_weights=language_weights(table, languages, image, positions),
        caption_languages=None,
    )


def only_language(pairs: PairList, language: str) -> PairList:
    """Return the pairs that have captions in a language, with these captions alone."""
    table = pairs.table
    counts = np.diff(table.caption_starts)
    image = np.repeat(np.arange(len(table)), counts)  # of each caption
    has_some = np.zeros(len(table), bool)
    has_some[image[captions_in(table, {language: None})]] = True
    chosen = PairList(table, pairs.rows[has_some[pairs.rows]])
    return choose_captions(chosen, CaptionChoice(languages={language: None}))


def captions_in(
    table: Table, languages: Mapping[str, float | None]
) -> Bool[np.ndarray, " captions"]:
    """Return which captions of a table are in one of these languages."""
    if table.caption_languages is None:
        return np.zeros(int(table.caption_starts[-1]), bool)
    rows = [k for k, name in enumerate(table.languages) if name in languages]
    return np.isin(table.caption_languages, rows)


def language_weights(
    table: Table,
    languages: Mapping[str, float | None],
    image: Int64[np.ndarray, " captions"],
    positions: Int64[np.ndarray, " chosen"],
) -> Float64[np.ndarray, " chosen"] | None:
    """Return the weights of the chosen captions; None if all are 1.

    With chances of languages, those of an image's captions in one language add up to its chance.

    image: that of each caption in the table.
    """
    weights = None if table.caption_weights is None else table.caption_weights[positions]
    if table.caption_languages is None or None in languages.values():
        return weights
    weights = np.ones(len(positions)) if weights is None else weights
    language = table.caption_languages[positions].astype(np.int64)
    group = image[positions] * len(table.languages) + language
    _, group = np.unique(group, return_inverse=True)
    totals = np.bincount(group, weights)[group]
    chances = np.array([languages.get(name) or 0.0 for name in table.languages])
    chances[0] = 1.0  # the empty caption of an image that has none
    shares = np.divide(weights, totals, out=np.zeros_like(weights), where=totals > 0)
    return chances[language] * shares


def describe_languages(table: Table) -> str:
    """Say how many captions there are of each language."""
    counts = count_languages(table.pairs)
    if not counts:
        return "No caption of this data says its language."
    texts = [f"{name or 'not said'} {count}" for name, count in counts.items()]
    return f"Captions by language: {listed(texts, SHOWN_LANGUAGES)}."


def count_languages(pairs: PairList) -> dict[str, int]:
    """Return how many captions there are of each language, the most frequent first.

    The language "" is that of captions that do not say it. Empty if none says it.
    """
    table = pairs.table
    if table.caption_languages is None:
        return {}
    positions, _ = ranges(table.caption_starts, pairs.rows)
    counts = np.bincount(table.caption_languages[positions], minlength=len(table.languages))
    named = Counter(dict(zip(table.languages, counts.tolist(), strict=True)))
    return {name: count for name, count in named.most_common() if count}


def without_weight(pairs: PairList) -> PairList:
    """Return the pairs whose captions all have the weight 0, so that none can be drawn."""
    weights = pairs.table.caption_weights
    if weights is None:
        return pairs[:0]
    sums = np.add.reduceat(weights, pairs.table.caption_starts[:-1])
    return pairs.where(sums[pairs.rows] == 0)


def require_weights(pairs: PairList) -> None:
    """Raise a UserError that names the pairs whose captions all have the weight 0."""
    missing = without_weight(pairs)
    if missing:
        raise UserError(
            f"{len(missing)} of {len(pairs)} images have only captions of weight 0, so none can be "
            f"drawn (caption_weights):\n{as_lines(missing.paths)}\n"
            "Give one of their captions a weight above 0, or remove these images."
        )


# Drawing ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CaptionDraws:
    """The texts that each pair can be trained on.

    Args:
        texts: those of the first pair, then those of the second, ...
        starts: where the texts of each pair begin.
        chances: of each text, the chance that it or one before it of its pair is drawn; None if
            all texts of a pair are as likely.
    """

    texts: Sequence[str]
    starts: Int64[np.ndarray, " pairs_plus_1"]
    chances: Float64[np.ndarray, " texts"] | None

    def draw(self, indices: Int[Tensor, " b"], numbers: Float64[Tensor, " b"]) -> Int[Tensor, " b"]:
        """Return a text of each of these pairs; numbers: random ones in [0, 1)."""
        chances = None if self.chances is None else torch.from_numpy(self.chances)
        return draw_captions(torch.from_numpy(self.starts), chances, indices, numbers)


def draw_captions(
    starts: Int[Tensor, " pairs_plus_1"],
    chances: Float64[Tensor, " texts"] | None,
    indices: Int[Tensor, " b"],
    numbers: Float64[Tensor, " b"],
) -> Int[Tensor, " b"]:
    """Return the number of one text of each of these pairs.

    Args:
        starts, chances: as in `CaptionDraws`.
        numbers: random ones in [0, 1); each selects a text.
    """
    first = starts.index_select(0, indices)
    counts = starts.index_select(0, indices + 1) - first
    if chances is None:
        return first + (numbers * counts).long()
    offsets = torch.arange(int(counts.max()))
    positions = (first[:, None] + offsets).clamp(max=len(chances) - 1)
    ends = chances.index_select(0, positions.flatten()).view_as(positions)
    passed = (ends <= numbers[:, None]) & (offsets < counts[:, None])
    return first + passed.sum(dim=1)


def caption_draws(
    pairs: PairList, variants: TagVariants | None = None, varied: int = 0
) -> CaptionDraws:
    """Return the texts of pairs.

    Args:
        variants: what is drawn in place of a caption.
        varied: so many pairs, the first ones, have variants; the others have their captions.
    """
    table = pairs.table
    positions, starts = ranges(table.caption_starts, pairs.rows)
    weights = table.caption_weights
    chances = None if weights is None else cumulative_chances(weights[positions], starts)
    if variants is None or varied == 0:
        return CaptionDraws(ChosenCaptions(table.captions, positions), starts, chances)
    copies = np.ones(len(positions), np.int64)
    copies[: starts[varied]] = variants.count
    firsts = np.concatenate([[0], copies.cumsum()])
    texts = VariantCaptions(table.captions, positions, firsts, variants, int(starts[varied]))
    if chances is not None:
        chances = divide_chances(chances, starts, firsts)
    return CaptionDraws(texts, firsts[starts], chances)


def cumulative_chances(
    weights: Float64[np.ndarray, " texts"], starts: Int64[np.ndarray, " pairs_plus_1"]
) -> Float64[np.ndarray, " texts"]:
    """Add up the weights within each pair, and divide by their sum, so that the last one is 1."""
    sums = np.array(weights)
    counts = np.diff(starts)
    active = np.flatnonzero(counts > 1)
    step = 1
    while len(active):
        own = starts[active] + step
        sums[own] += sums[own - 1]
        step += 1
        active = active[counts[active] > step]
    return sums / np.repeat(sums[starts[1:] - 1], counts)


def divide_chances(
    chances: Float64[np.ndarray, " captions"],
    starts: Int64[np.ndarray, " pairs_plus_1"],
    firsts: Int64[np.ndarray, " captions_plus_1"],
) -> Float64[np.ndarray, " texts"]:
    """Divide the chance of each caption equally among its texts.

    firsts: where the texts of each caption begin.
    """
    before = np.concatenate([[0.0], chances[:-1]])
    before[starts[:-1]] = 0.0
    copies = np.diff(firsts)
    number = np.arange(1, firsts[-1] + 1) - np.repeat(firsts[:-1], copies)  # 1, 2, ..., copies
    ends = np.repeat(chances, copies)
    rest = 1 - number / np.repeat(copies, copies)  # 0 for the last one, which ends at `chances`
    return ends - (ends - np.repeat(before, copies)) * rest


class VariantCaptions(ComputedStrings):
    """Variants of captions, one caption after the other, made when they are asked for.

    Args:
        positions: of the captions in `strings`.
        firsts: where the variants of each caption begin.
        varied: the captions from this number on stand as they are.
    """

    def __init__(
        self,
        strings: Sequence[str],
        positions: Int64[np.ndarray, " captions"],
        firsts: Int64[np.ndarray, " captions_plus_1"],
        variants: TagVariants,
        varied: int,
    ):
        self.strings, self.positions, self.firsts = strings, positions, firsts
        self.variants, self.varied = variants, varied

    def __len__(self) -> int:
        return int(self.firsts[-1])

    def string(self, k: int) -> str:
        caption = int(self.firsts.searchsorted(k, side="right")) - 1
        position = int(self.positions[caption])
        if caption >= self.varied:
            return self.strings[position]
        number = k - int(self.firsts[caption])
        if isinstance(self.strings, ChosenCaptions):
            return self.strings.variant(position, number, self.variants)
        return self.variants.make(self.strings[position], number)
