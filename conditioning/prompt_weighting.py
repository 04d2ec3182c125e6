"""Contexts of prompts whose words have weights, and of prompts longer than one context.

The state of a token moves on the line from the state that the empty prompt has at the same place:

    empty + weight (state - empty)

A weight of 1 changes nothing. A weight of 0 removes the word, since the empty prompt is what a
model is trained on where captions are dropped. A weight above 1 goes further in the same direction,
as guidance does with the whole prompt. This is ComfyUI's rule. AUTOMATIC1111's multiplies the state
itself and restores the mean afterwards. That presumes states around zero, and those of another text
encoder than OpenAI's may lie anywhere.
"""

from collections.abc import Callable, Sequence
from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

from conditioning.encoder import TextEncoder
from conditioning.prompt_syntax import Span

LONG_WORD = 20  # characters; longer ones are cut, as languages without spaces have no words


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

    It begins with the first word that is cut or left out. In a long word, such as a sentence of a
    language without spaces, it begins with the first character.

    text: without prompt syntax.
    """
    room = chunks * (encoder.tokens - 2)
    if encoder.count_tokens(text) - 2 <= room:
        return ""

    def fits(start: str) -> bool:
        return len(encoder.tokenizer.encode(start)) <= room

    words = text.split()
    count = largest_that_fits(len(words), lambda k: fits(" ".join(words[:k])))
    start, cut = " ".join(words[:count]), words[count]
    if len(cut) > LONG_WORD:
        length = largest_that_fits(len(cut), lambda k: fits(f"{start} {cut[:k]}".strip()))
        cut = cut[length:]
    return " ".join([cut, *words[count + 1 :]])


def largest_that_fits(too_many: int, fits: Callable[[int], bool]) -> int:
    """Find the largest number below `too_many` that fits, by bisection; 0 fits."""
    fitting = 0
    while too_many - fitting > 1:
        middle = (fitting + too_many) // 2
        if fits(middle):
            fitting = middle
        else:
            too_many = middle
    return fitting
