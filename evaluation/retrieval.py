"""Recall: how often a CLIP finds the right text for an image, or the right image for a text."""

from collections.abc import Hashable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from foundation.errors import UserError


def recall_at(
    similarity: Float[Tensor, "queries candidates"],
    captions: Sequence[Hashable],
    ks: Sequence[int] = (1, 5, 10),
) -> dict[int, float]:
    """Return, for each k, the fraction of queries whose right candidate is among the k best.

    A tie counts as a miss, so a network that gives everything the same value scores 0, not 1.

    Args:
        similarity: entry [i, j] compares query i with candidate j; candidate i is the right one
            for query i. Images as queries ask for their text, texts as queries for their image.
        captions: of the pairs. A candidate with the same caption as the query is right, too: any
            picture of a red apple is a right answer to "red apple".
        ks: each at least 1.

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
    # Wrong candidates that are not worse. "Not less" instead of "at least": NaN counts as a miss.
    ahead = (~right & ~(similarity < best)).sum(dim=1)
    return {k: (ahead < k).cpu().double().mean().item() for k in ks}
