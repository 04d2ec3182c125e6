"""Captions that are longer than what the model reads of them."""

from collections.abc import Sequence
from textwrap import shorten

from conditioning import TextEncoder
from conditioning.prompt_weighting import cut_off
from dataset.table import Pair

COUNTED = 10_000  # pairs whose captions are looked at
SHOWN = 200  # characters of what is cut


def note_cut(pairs: Sequence[Pair], encoder: TextEncoder, chunks: int) -> None:
    """Says how many lose their end, what that is of one, and how many contexts would hold all."""
    captions = [(pair.path, caption) for pair in pairs[:COUNTED] for caption in pair.captions]
    room = encoder.tokens - 2
    lengths = [encoder.count_tokens(caption) - 2 for _, caption in captions]
    long = [k for k, length in enumerate(lengths) if length > chunks * room]
    if not long:
        return
    path, caption = captions[long[0]]
    cut = shorten(cut_off(encoder, caption, chunks), SHOWN, placeholder=" ...")
    print(
        f"note: {len(long)} of {len(captions)} captions are longer than "
        f"{chunks} context{'s' * (chunks > 1)} of {encoder.tokens} tokens, and lose their end: of "
        f"that of {path} the model does not see {cut!r}. The longest would fit with --text-chunks "
        f"{-(-max(lengths) // room)}."
    )
