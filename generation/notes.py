"""What a user should know about how a prompt is read, before anything is drawn."""

from conditioning.prompt_syntax import Part, is_plain, parse, plain
from conditioning.prompt_weighting import cut_off
from ldm import TextToImage
from ldm.pipeline.conditioning import is_text_conditional


def notes(pipeline: TextToImage, text: str, signs: bool) -> list[str]:
    """One line each: signs that are no words, and words that the model does not see."""
    if not is_text_conditional(pipeline.unet):
        return []
    lines = []
    parts = parse(text) if signs else plain(text)
    if signs and not is_plain(text):
        lines.append(f"read {text!r} as {told(parts)}; for the signs themselves: --plain-prompts.")
    for part in parts:
        cut = cut_off(pipeline.text_encoder, part.text, pipeline.chunks)
        if cut:
            encoder = pipeline.text_encoder
            needed = encoder.count_tokens(part.text) + 2 * (pipeline.chunks - 1)  # starts and ends
            lines.append(
                f"warning: {needed} tokens, but this model reads "
                f"{encoder.tokens * pipeline.chunks}; of {part.text!r} it does not see {cut!r}"
            )
    return lines


def told(parts: tuple[Part, ...]) -> str:
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
