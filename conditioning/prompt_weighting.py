"""The context of a prompt whose words have weights, and of one longer than the text encoder's.

A token's state is moved along the line from the state that the empty prompt has at its place:

    empty + weight (state - empty)

So 1 leaves it as it is, 0 takes the word out of the picture, since the empty prompt is what a model
is trained on where captions are dropped, and above 1 goes on in the same direction, as guidance
does with the whole prompt. That is ComfyUI's rule. AUTOMATIC1111's multiplies the state itself and
brings the mean back, which presumes states around zero: those of a text encoder of one's own lie
where training left them.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from conditioning.encoder import TextEncoder
from conditioning.prompt_syntax import Span


def encode_chunks(
    encoder: TextEncoder, texts: Sequence[str], chunks: int
) -> Float[Tensor, "b l d"]:
    """The contexts of texts as they stand, without signs of weights: of captions.

    chunks: as for `encode_weighted`. What is alike, such as those of padding, is computed once.
    """
    ids = torch.cat([tokens(encoder, ((text, 1.0),), chunks)[0] for text in texts])
    distinct, places = ids.unique(dim=0, return_inverse=True)
    contexts = encoder.encode(distinct)
    return contexts[places.to(contexts.device)].unflatten(0, (-1, chunks)).flatten(1, 2)


def encode_weighted(
    encoder: TextEncoder, spans: tuple[Span, ...], chunks: int = 1
) -> Float[Tensor, "1 l d"]:
    """The context of a prompt, as `conditioning.prompt_syntax` reads it.

    chunks: contexts that stand one after the other, for a model that was trained so; every prompt
        fills all of them, the short ones with padding.
    """
    ids, weights = tokens(encoder, spans, chunks)
    context = torch.cat([encoder.encode(row[None]) for row in ids], dim=1)
    if (weights == 1).all():
        return context
    empty = encoder([""]).repeat(1, chunks, 1)
    weights = weights.to(context).view(1, -1, 1)
    return torch.where(weights == 1, context, empty + weights * (context - empty))


def tokens(
    encoder: TextEncoder, spans: tuple[Span, ...], chunks: int
) -> tuple[Int[Tensor, "chunks tokens"], Float[Tensor, "chunks tokens"]]:
    """Ids and weights, each chunk with its start, end and padding, which count as they are."""
    tokenizer, room = encoder.tokenizer, encoder.tokens - 2
    known = [(i, weight) for text, weight in spans for i in tokenizer.encode(text)]
    start, end, pad = (tokenizer.id_of(x) for x in (tokenizer.start, tokenizer.end, tokenizer.pad))
    ids = torch.full((chunks, encoder.tokens), pad)
    weights = torch.ones(chunks, encoder.tokens)
    for k in range(chunks):
        kept = known[k * room : (k + 1) * room]
        ids[k, : len(kept) + 2] = torch.tensor([start, *(i for i, _ in kept), end])
        weights[k, 1 : len(kept) + 1] = torch.tensor([weight for _, weight in kept])
    return ids, weights


def cut_off(encoder: TextEncoder, text: str, chunks: int = 1) -> str:
    """The end of a text that the model does not see: from the first word of which a part is cut.

    text: without the signs of weights.
    """
    room = chunks * (encoder.tokens - 2)
    if encoder.count_tokens(text) - 2 <= room:
        return ""
    words = text.split()
    low, high = 0, len(words)  # so many words fit; so many do not
    while high - low > 1:
        middle = (low + high) // 2
        fits = len(encoder.tokenizer.encode(" ".join(words[:middle]))) <= room
        low, high = (middle, high) if fits else (low, middle)
    return " ".join(words[low:])
