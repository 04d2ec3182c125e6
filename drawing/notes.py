"""What a user should know about how a prompt is read, before anything is drawn."""

from conditioning.prompt import is_plain, parse, plain
from conditioning.weighting import cut_off
from ldm import TextToImage


def notes(pipeline: TextToImage, text: str, signs: bool) -> list[str]:
    """One line each: signs that are no words, and words that the model does not see."""
    lines = []
    parts = parse(text) if signs else plain(text)
    if signs and not is_plain(text):
        lines.append(f"read {text!r} as {told(parts)}; for the signs themselves: --plain-prompts.")
    for part in parts:
        cut = cut_off(pipeline.text_encoder, part.text, pipeline.chunks)
        if cut:
            places = pipeline.chunks * (pipeline.text_encoder.tokens - 2)
            lines.append(
                f"warning: this model reads {places} tokens of a prompt; of {part.text!r} it does "
                f"not see: {cut!r}"
            )
    return lines


def told(parts) -> str:
    """The prompts with their weights, those of 1 left out."""
    texts = []
    for part in parts:
        spans = [
            repr(text.strip()) + f" times {weight:.3g}" * (weight != 1)
            for text, weight in part.spans
            if text.strip()
        ]
        share = f" (share {part.share:.3g})" * (len(parts) > 1)
        texts.append(", ".join(spans) + share)
    return " and ".join(texts)
