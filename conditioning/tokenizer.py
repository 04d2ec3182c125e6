"""Text to token ids: CLIP's byte-pair encoding (Radford et al. 2021, arXiv:2103.00020).

One convention for every checkpoint: the text is cleaned as Hugging Face's `CLIPTokenizer` cleans
it, that is Unicode NFC, runs of white space to one space, lower case, and nothing else. The
tokenizer files saved with a model therefore give the ids that training saw, in diffusers too.
open_clip's own tokenizer also repairs mojibake, straightens curly quotes and unescapes HTML
entities; for text without those the ids are the same.
"""

import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise

import regex
import torch
from jaxtyping import Int
from torch import Tensor

from foundation.errors import UserError

START_OF_TEXT = "<|startoftext|>"
END_OF_TEXT = "<|endoftext|>"
WORD = regex.compile(r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+")
END_OF_WORD = "</w>"


def byte_symbols() -> list[str]:
    """One printable character for each byte, so that any text is a sequence of known symbols.

    Printable Latin-1 characters stand for themselves, the rest for characters from U+0100 on
    (Radford et al. 2019, the encoding of GPT-2).
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


BYTE_SYMBOLS = byte_symbols()


@dataclass(frozen=True, kw_only=True)
class SpecialToken:
    """A token that is found in the text as a whole, before the text is split into words."""

    id: int
    normalized: bool = False  # searched in the cleaned text, so in any case of letters


@dataclass(frozen=True, kw_only=True)
class Tokenizer:
    """Byte-pair encoding with CLIP's start and end tokens, cut and padded to one length.

    `pad` is the token that fills the rest. Checkpoints of OpenAI's family in Hugging Face's layout
    pad with the end token, those of open_clip with id 0, which is "!": there a "!" in the text
    becomes id 0 as well, as it does in the tokenizer of Stable Diffusion 2.
    """

    vocabulary: Mapping[str, int]
    merges: Mapping[tuple[str, str], int]  # pair of symbols -> rank; lower ranks merge first
    special: Mapping[str, SpecialToken]
    context_length: int  # tokens, start and end token included
    start: str = START_OF_TEXT
    end: str = END_OF_TEXT
    pad: str = END_OF_TEXT
    unknown: str = END_OF_TEXT
    _words: dict[str, tuple[int, ...]] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self):
        if self.context_length < 3:
            raise UserError(
                f"a context of {self.context_length} tokens has no room for text between the "
                "start and the end token; 3 is the least."
            )

    def id_of(self, token: str) -> int:
        return self.special[token].id if token in self.special else self.vocabulary[token]

    def encode(self, text: str) -> list[int]:
        """Ids of the text alone: not cut, without start, end and padding."""
        as_written = [name for name, token in self.special.items() if not token.normalized]
        normalized = [name for name, token in self.special.items() if token.normalized]
        ids = []
        for piece in split_keeping(text, as_written):
            if piece in as_written:
                ids.append(self.special[piece].id)
                continue
            for part in split_keeping(clean(piece), normalized):
                if part in normalized:
                    ids.append(self.special[part].id)
                else:
                    ids.extend(i for word in WORD.findall(part) for i in self._word_ids(word))
        return ids

    def count(self, text: str) -> int:
        """Tokens the text would need, start and end token included, were it not cut."""
        return len(self.encode(text)) + 2

    def __call__(self, texts: list[str]) -> Int[Tensor, "b tokens"]:
        """Token ids, cut and padded to `context_length`; the end token always survives the cut."""
        start, end, pad = self.id_of(self.start), self.id_of(self.end), self.id_of(self.pad)
        ids = torch.full((len(texts), self.context_length), pad, dtype=torch.long)
        for row, text in zip(ids, texts, strict=True):
            kept = [start, *self.encode(text)[: self.context_length - 2], end]
            row[: len(kept)] = torch.tensor(kept)
        return ids

    def _word_ids(self, word: str) -> tuple[int, ...]:
        if word not in self._words:
            unknown = self.id_of(self.unknown)
            symbols = merge([BYTE_SYMBOLS[byte] for byte in word.encode()], self.merges)
            self._words[word] = tuple(self.vocabulary.get(s, unknown) for s in symbols)
        return self._words[word]


def clean(text: str) -> str:
    """NFC, one space for white space, lower case letter by letter.

    Letter by letter, because Hugging Face's tokenizers lower so: a capital sigma at the end of a
    word becomes a plain one, where `str.lower` would write the final form.
    """
    text = " ".join(regex.split(r"\s+", unicodedata.normalize("NFC", text)))
    return "".join(letter.lower() for letter in text)


def split_keeping(text: str, tokens: Iterable[str]) -> list[str]:
    """The text cut at each of the tokens, the tokens kept as pieces of their own."""
    longest_first = sorted(tokens, key=len, reverse=True)
    if not longest_first:
        return [text]
    return regex.split("(" + "|".join(map(regex.escape, longest_first)) + ")", text)


def merge(symbols: list[str], merges: Mapping[tuple[str, str], int]) -> list[str]:
    """Byte-pair encoding of one word (Sennrich et al. 2016, arXiv:1508.07909).

    The adjacent pair of lowest rank becomes one symbol, wherever it stands, until no pair is left.
    """
    symbols = [*symbols[:-1], symbols[-1] + END_OF_WORD]
    while len(symbols) > 1:
        best = min(pairwise(symbols), key=lambda pair: merges.get(pair, len(merges)))
        if best not in merges:
            break
        merged = []
        for symbol in symbols:
            if merged and not merged[-1][1] and (merged[-1][0], symbol) == best:
                merged[-1] = (merged[-1][0] + symbol, True)  # a new symbol: not merged again yet
            else:
                merged.append((symbol, False))
        symbols = [symbol for symbol, _ in merged]
    return symbols
