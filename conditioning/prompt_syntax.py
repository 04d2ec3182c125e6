r"""What may be written in a prompt besides words: weights of words, and several prompts in one.

    (red) heart         "red" counts 1.1 times as much; ((red)) 1.1 times 1.1
    [red] heart         "red" counts 1.1 times less
    (red:1.3) heart     1.3 times as much; 0 leaves it out, below 0 pushes away
    (a [red] dog:1.2)   weights of brackets in brackets are multiplied
    cat AND dog         two prompts drawn as one picture, of equal shares
    cat :0.7 AND dog :0.3    of these shares; more than 1 in all is more guidance
    \( \) \[ \] \\ \AND       the characters themselves

A number after a colon at the end of a bracket is its weight: (ratio 3:4:1) has "ratio 3:4" in it.

The signs are those that AUTOMATIC1111's web UI made common. Its shares of AND are 1 each unless
given, which with two prompts is twice the guidance asked for; here they add up to 1. A caption with
brackets of its own is read by `plain`. What weights do to a context says
`conditioning.prompt_weighting`.
"""

import math
import re
from dataclasses import dataclass

from foundation.errors import UserError

STEP = 1.1  # of a bracket without a number
# A sign, an escaped one with its backslash, or a character.
TOKEN = re.compile(r"\\(?:AND\b|[()\[\]\\])|\bAND\b|.", re.DOTALL)
NUMBER = re.compile(r"\s*:\s*([-+]?(?:\d+\.?\d*|\.\d+))\s*$")  # at the end: weight or share
Span = tuple[str, float]  # text and its weight


@dataclass(frozen=True)
class Part:
    """One of the prompts that are drawn as one picture."""

    spans: tuple[Span, ...]
    share: float = 1.0  # of the guidance

    @property
    def text(self) -> str:
        return "".join(text for text, _ in self.spans)


def plain(text: str) -> tuple[Part, ...]:
    """The text as it is written, all of one weight."""
    return (Part(((text, 1.0),)),)


def parse(text: str) -> tuple[Part, ...]:
    """The prompts in a text, without the signs.

    Raises:
        ValueError: brackets that do not match, or shares that make no sense.
    """
    pieces = split_at_and(text)
    if len(pieces) == 1:
        return (Part(weighted(text, text)),)
    bodies, shares = [], []
    for piece in pieces:
        share = NUMBER.search(piece)
        shares.append(None if share is None else float(share[1]))
        bodies.append(piece if share is None else piece[: share.start()])
    if not all(body.strip() for body in bodies):
        raise UserError(rf"{text!r}: AND stands between two prompts. For the word, write \AND.")
    if all(share is None for share in shares):
        shares = [1 / len(pieces)] * len(pieces)
    if None in shares:
        raise UserError(
            f"{text!r} gives a share to some of its prompts only. Give one to each, as in "
            "'cat :0.7 AND dog :0.3', or to none."
        )
    if not sum(shares) > 0:
        raise UserError(f"{text!r}: the shares of its prompts must add up to more than 0.")
    return tuple(
        Part(weighted(body, text), share) for body, share in zip(bodies, shares, strict=True)
    )


def is_plain(text: str) -> bool:
    """Whether `parse` reads the text as it is written."""
    return not re.search(r"[()\[\]]|\\[()\[\]\\]|\bAND\b", text)


def split_at_and(text: str) -> list[str]:
    """At each AND outside of brackets."""
    pieces, depth = [""], 0
    for token in TOKEN.findall(text):
        depth += (token in "([") - (token in ")]")
        if token == "AND" and depth <= 0:
            pieces.append("")
        else:
            pieces[-1] += token
    return pieces


def weighted(text: str, whole: str) -> tuple[Span, ...]:
    """Neighbors of equal weight are one span. whole: for the messages."""
    spans: list[Span] = []
    opened: list[tuple[str, int]] = []  # the bracket, and where in `spans` it opens
    for token in TOKEN.findall(text):
        if token in ("(", "["):
            opened.append((token, len(spans)))
        elif token in (")", "]"):
            if not opened or opened[-1][0] + token not in ("()", "[]"):
                raise UserError(unmatched(whole, token))
            bracket, first = opened.pop()
            spans[first:] = closed(spans[first:], bracket, whole)
        else:
            spans.append((token.removeprefix("\\") or "\\", 1.0))
    if opened:
        raise UserError(unmatched(whole, opened[-1][0]))
    return joined(spans)


def closed(inner: list[Span], bracket: str, whole: str) -> list[Span]:
    """What a bracket makes of the spans in it, and of the number at their end."""
    written = "".join(text for text, _ in inner)
    number = NUMBER.search(written)
    if number is None:
        factor = STEP if bracket == "(" else 1 / STEP
    elif bracket == "[":
        raise UserError(
            f"{whole!r}: square brackets take no number. Write (word:0.8) for less, or \\[ for the "
            "bracket itself."
        )
    else:
        factor, inner = float(number[1]), cut(inner, number.start())
    return [(text, weight * factor) for text, weight in inner]


def cut(spans: list[Span], length: int) -> list[Span]:
    """The first so many characters."""
    kept = []
    for text, weight in spans:
        kept.append((text[:length], weight))
        length -= len(kept[-1][0])
    return [(text, weight) for text, weight in kept if text]


def joined(spans: list[Span]) -> tuple[Span, ...]:
    result: list[Span] = []
    for text, weight in spans:
        if result and math.isclose(result[-1][1], weight, rel_tol=1e-12):
            result[-1] = (result[-1][0] + text, result[-1][1])
        else:
            result.append((text, weight))
    return tuple(result) or (("", 1.0),)


def unmatched(text: str, bracket: str) -> str:
    return (
        f"{text!r}: the bracket {bracket} has no partner. Brackets weight words, as in (red:1.3) "
        f"heart; for the bracket itself write \\{bracket}, or read all prompts as they are "
        "written: sample.py --plain-prompts."
    )
