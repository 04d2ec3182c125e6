"""How well a CLIP tells which picture belongs to which text."""

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
    """Share of the queries whose own candidate is among the k most similar.

    Args:
        similarity: row i, the i-th query against every candidate; the i-th candidate is its own.
            Images as rows ask "which text is it?", texts as rows "which image is it?".
        captions: of the pairs. A candidate with the same caption as the query's is as good as its
            own: a picture of a second red apple is no mistake.

    A tie counts as a miss, so a network that gives everything the same value scores 0, not 1.
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
    # Wrong candidates that come first. "Not less" rather than "more or equal": NaN is a miss too.
    before = (~right & ~(similarity < best)).sum(dim=1)
    return {k: (before < k).double().mean().item() for k in ks}
