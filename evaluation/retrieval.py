"""Recall: how often a CLIP finds the right text for an image, or the right image for a text."""

from collections.abc import Hashable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from foundation.errors import UserError


def recall_at(
    similarity: Float[Tensor, "queries candidates"],
    captions: Sequence[Hashable],
    ks: Sequence[int] = (1, 5, 10),
) -> dict[int, float]:
    """Return, for each k, the fraction of queries whose right candidate is among the k best.

    Args and errors as `wrong_candidates_ahead`; ks: each at least 1.
    """
    ahead = wrong_candidates_ahead(similarity, captions)
    return {k: (ahead < k).cpu().double().mean().item() for k in ks}


def wrong_candidates_ahead(
    similarity: Float[Tensor, "queries candidates"], captions: Sequence[Hashable]
) -> Int[Tensor, " queries"]:
    """Count, for each query, the wrong candidates that are not worse than the best right one.

    A tie counts as a miss, so a network that gives everything the same value finds nothing.

    Args:
        similarity: entry [i, j] compares query i with candidate j; candidate i is the right one
            for query i. Images as queries ask for their text, texts as queries for their image.
        captions: of the pairs. A candidate with the same caption as the query is right, too: any
            picture of a red apple is a right answer to "red apple".

    Raises:
        UserError: similarity is not square, or has another size than captions.
    """
    if similarity.shape != (len(captions), len(captions)):
        raise UserError(
            f"similarity is {tuple(similarity.shape)} for {len(captions)} captions; it must have "
            "one row and one column for each."
        )
    numbers = {caption: k for k, caption in enumerate(dict.fromkeys(captions))}
    labels = torch.tensor([numbers[caption] for caption in captions], device=similarity.device)
    right = labels[:, None] == labels[None, :]
    best = similarity.masked_fill(~right, -torch.inf).amax(dim=1, keepdim=True)
    # "Not less" instead of "at least": NaN counts as a miss.
    return (~right & ~(similarity < best)).sum(dim=1)
