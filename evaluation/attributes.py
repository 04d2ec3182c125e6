"""Which of a few words a picture shows, where captions name one of them: a style, a color."""

import re
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from foundation.errors import UserError, listed, shown

CHUNK = 128  # captions that are changed and encoded at once


class Attribute:
    """A few words that exclude each other. A caption has the attribute if it names one, once.

    Words are found whole, in upper or lower case: "light" is not found in "medium-light", and
    "red" not in "hundred".
    """

    def __init__(self, words: Sequence[str]):
        """Take the words.

        Raises:
            UserError: they are fewer than two, or one of them is empty or given twice.
        """
        self.words = tuple(words)
        folded = [word.casefold() for word in words]
        if len(words) < 2 or len(set(folded)) < len(words) or not all(map(str.strip, words)):
            raise UserError(
                f"an attribute needs two or more different words, such as red and blue; given: "
                f"{listed([shown(word) for word in words])}."
            )
        self.numbers = {word: k for k, word in enumerate(folded)}
        longest_first = sorted(words, key=len, reverse=True)
        any_word = "|".join(map(re.escape, longest_first))
        self.pattern = re.compile(rf"(?<![\w-])(?:{any_word})(?![\w-])", re.IGNORECASE)

    def label(self, caption: str) -> int | None:
        """Return the number of the word that a caption names; None if it has not the attribute."""
        found = self.pattern.findall(caption)
        return self.numbers[found[0].casefold()] if len(found) == 1 else None

    def variants(self, caption: str) -> list[str]:
        """Return a caption that has the attribute with each of the words in turn."""
        return [self.pattern.sub(lambda _, word=word: word, caption) for word in self.words]

    def labels(self, captions: Sequence[str], without: int) -> Int[Tensor, " n"]:
        """Return the number of the word of each caption; `without` where there is none."""
        found = [self.label(caption) for caption in captions]
        return torch.tensor([without if one is None else one for one in found], dtype=torch.long)

    def scores(
        self,
        images: Float[Tensor, "n d"],
        captions: Sequence[str],
        encode_texts: Callable[[list[str]], Tensor],
    ) -> Float[Tensor, "n words"]:
        """Return how well each image fits its caption with each of the words in turn.

        Args:
            images: unit vectors of a CLIP, image k that of caption k.
            encode_texts: texts to unit vectors (m, d) of the same CLIP.

        Rows of captions without the attribute are 0.
        """
        scores = torch.zeros(len(captions), len(self.words))
        having = [k for k, caption in enumerate(captions) if self.label(caption) is not None]
        for start in range(0, len(having), CHUNK):
            some = having[start : start + CHUNK]
            variants = [text for k in some for text in self.variants(captions[k])]
            texts = encode_texts(variants).reshape(len(some), len(self.words), -1)
            scores[some] = torch.einsum("nd,nwd->nw", images[some].float(), texts.float().cpu())
        return scores
