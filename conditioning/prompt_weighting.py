"""Contexts of prompts whose words have weights, and of prompts longer than one context.

The state of a token moves on the line from the state that the empty prompt has at the same place:

    empty + weight (state - empty)

A weight of 1 changes nothing. A weight of 0 removes the word, since the empty prompt is what a
model is trained on where captions are dropped. A weight above 1 goes further in the same direction,
as guidance does with the whole prompt. This is ComfyUI's rule. AUTOMATIC1111's multiplies the state
itself and restores the mean afterwards. That presumes states around zero, and those of another text
encoder than OpenAI's may lie anywhere.
"""

from collections.abc import Sequence
from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

from conditioning.encoder import TextEncoder
from conditioning.prompt_syntax import Span


def encode_chunks(
    encoder: TextEncoder, texts: Sequence[str], chunks: int
) -> Float[Tensor, "b l d"]:
    """Return the contexts of plain texts, such as captions.

    Equal chunks, such as those of padding, are computed once.

    chunks: how many contexts each text fills, as in `encode_weighted`.
    """
    ids = torch.cat([chunk_tokens(encoder, ((text, 1.0),), chunks)[0] for text in texts])
    distinct, places = cast(
        tuple[Tensor, Tensor],
        ids.unique(dim=0, return_inverse=True),  # pyright: ignore[reportUnknownMemberType]
    )
    contexts = encoder.encode(distinct)
    return contexts[places.to(contexts.device)].reshape(len(texts), -1, encoder.width)


def encode_weighted(
    encoder: TextEncoder, spans: tuple[Span, ...], chunks: int = 1
) -> Float[Tensor, "1 l d"]:
    """Return the context of a prompt with weights.

    Args:
        spans: as `conditioning.prompt_syntax.parse_prompt` returns them.
        chunks: how many contexts follow each other, for a model that was trained so. Every prompt
            fills all of them; short ones are padded.
    """
    ids, weights = chunk_tokens(encoder, spans, chunks)
    context = torch.cat([encoder.encode(row[None]) for row in ids], dim=1)
    if (weights == 1).all():
        return context
    empty = encoder([""]).repeat(1, chunks, 1)
    weights = weights.to(context).view(1, -1, 1)
    return torch.where(weights == 1, context, empty + weights * (context - empty))


def chunk_tokens(
    encoder: TextEncoder, spans: tuple[Span, ...], chunks: int
) -> tuple[Int[Tensor, "chunks tokens"], Float[Tensor, "chunks tokens"]]:
    """Return token ids and weights; start, end and padding of each chunk have a weight of 1."""
    tokenizer, room = encoder.tokenizer, encoder.tokens - 2
    weighted = [(i, weight) for text, weight in spans for i in tokenizer.encode(text)]
    start, end, pad = (tokenizer.id_of(x) for x in (tokenizer.start, tokenizer.end, tokenizer.pad))
    ids = torch.full((chunks, encoder.tokens), pad)
    weights = torch.ones(chunks, encoder.tokens)
    for k in range(chunks):
        chunk = weighted[k * room : (k + 1) * room]
        ids[k, : len(chunk) + 2] = torch.tensor([start, *(i for i, _ in chunk), end])
        weights[k, 1 : len(chunk) + 1] = torch.tensor([weight for _, weight in chunk])
    return ids, weights


def truncated_words(encoder: TextEncoder, text: str, chunks: int = 1) -> str:
    """Return the end of a text that does not fit into the context, or "" if all of it fits.

    It begins with the first word that is cut or left out.

    text: without prompt syntax.
    """
    room = chunks * (encoder.tokens - 2)
    if encoder.count_tokens(text) - 2 <= room:
        return ""
    words = text.split()
    fitting, too_many = 0, len(words)  # so many words fit; so many do not
    while too_many - fitting > 1:
        middle = (fitting + too_many) // 2
        if len(encoder.tokenizer.encode(" ".join(words[:middle]))) <= room:
            fitting = middle
        else:
            too_many = middle
    return " ".join(words[fitting:])
