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
        """Return a caption with each of the words in turn in place of the one that it names."""
        return [self.pattern.sub(lambda _, word=word: word, caption) for word in self.words]

    def labels(self, captions: Sequence[str], without: int) -> Int[Tensor, " n"]:
        """Return the number of the word of each caption; `without` where there is none."""
        found = [self.label(caption) for caption in captions]
        return torch.tensor([without if one is None else one for one in found], dtype=torch.long)

    def encode_variants(
        self, captions: Sequence[str], encode_texts: Callable[[list[str]], Tensor]
    ) -> Float[Tensor, "n words d"]:
        """Return the vectors of each caption with each of the words in turn.

        encode_texts: texts to unit vectors (m, d) of a CLIP.

        Those of a caption without the attribute mean nothing.
        """
        parts: list[Tensor] = []
        for start in range(0, len(captions), CHUNK):
            some = captions[start : start + CHUNK]
            variants = [text for caption in some for text in self.variants(caption)]
            parts.append(encode_texts(variants).unflatten(0, (len(some), len(self.words))).cpu())
        return torch.cat(parts)


def fit(
    images: Float[Tensor, "n d"], variants: Float[Tensor, "n words d"]
) -> Float[Tensor, "n words"]:
    """Return how well each image fits each variant of its own caption: cosines of one CLIP."""
    return torch.einsum("nd,nwd->nw", images.float(), variants.float())
