"""What all tokenizers of this package have in common: rows of token ids of one length."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from foundation.errors import UserError, shown


class TextTokenizer(ABC):
    """Turns texts into ids: a start token, the text, an end token, and padding to one length.

    Attributes:
        context_length: tokens of a row, start and end token included.
        start, end, pad: names of these tokens.
    """

    context_length: int
    start: str
    end: str
    pad: str

    @abstractmethod
    def id_of(self, token: str) -> int:
        """Return the id of a token of the vocabulary, or of a special token."""

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """Return the ids of the text alone: not truncated, without start, end and padding."""

    @property
    @abstractmethod
    def largest_id(self) -> int:
        """Return the largest id that a text can have."""

    def count(self, text: str) -> int:
        """Return how many tokens the whole text needs, start and end token included."""
        return len(self.encode(text)) + 2

    def __call__(self, texts: list[str]) -> Int[Tensor, "b tokens"]:
        """Return token ids, truncated and padded to `context_length`; the end token stays."""
        start, end, pad = self.id_of(self.start), self.id_of(self.end), self.id_of(self.pad)
        ids = torch.full((len(texts), self.context_length), pad, dtype=torch.long)
        for row, text in zip(ids, texts, strict=True):
            used = [start, *self.encode(text)[: self.context_length - 2], end]
            row[: len(used)] = torch.tensor(used)
        return ids


def check_context_length(length: int) -> None:
    """Refuse a context length that has no room for text."""
    if length < 3:
        raise UserError(
            f"a context of {length} tokens has no room for text between the start and the end "
            "token; 3 is the least."
        )


def longest_text(settings: Mapping[str, Any], positions: int, source: Path | str) -> int:
    """Return the smaller one of a tokenizer's `model_max_length` and the tower's positions."""
    length = settings.get("model_max_length")
    if length is None:
        return positions
    # transformers writes int(1e30) where there is no limit, so any size of number is possible.
    if type(length) not in (int, float) or not length >= 3 or length % 1:
        raise UserError(
            f"{source}: model_max_length is {shown(length)}; it must be a whole number of tokens, "
            "at least 3."
        )
    return positions if length >= positions else int(length)
