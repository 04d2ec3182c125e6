r"""Syntax of prompts: weights of words, and several prompts in one.

    (red) heart         "red" counts 1.1 times as much; ((red)) 1.1 times 1.1
    [red] heart         "red" counts 1.1 times less
    (red:1.3) heart     1.3 times as much; 0 leaves it out, below 0 is its opposite
    (a [red] dog:1.2)   weights of brackets in brackets are multiplied
    cat AND dog         two prompts for one picture, with equal shares
    cat :0.7 AND dog :0.3    with these shares; more than 1 in all is more guidance
    \( \) \[ \] \\ \AND       the characters themselves

A number after a colon at the end of a bracket is its weight: (ratio 3:4:1) is "ratio 3:4" with a
weight of 1.

The syntax is that of AUTOMATIC1111's web UI. There, the shares of AND are 1 each by default, which
with two prompts is twice the guidance scale; here they add up to 1. Captions with brackets of their
own are read by `plain_prompt`. `conditioning.prompt_weighting` applies the weights.
"""

import math
import re
from dataclasses import dataclass

from foundation.errors import UserError

BRACKET_WEIGHT = 1.1  # of a bracket without a number
# Syntax, escaped syntax with its backslash, or any other character.
TOKEN = re.compile(r"\\(?:AND\b|[()\[\]\\])|\bAND\b|.", re.DOTALL)
NUMBER = re.compile(r"\s*:\s*([-+]?(?:\d+\.?\d*|\.\d+))\s*$")  # at the end: weight or share
Span = tuple[str, float]  # a piece of text and its weight


@dataclass(frozen=True)
class SubPrompt:
    """One of the prompts that AND joins."""

    spans: tuple[Span, ...]
    share: float = 1.0  # of the guidance

    @property
    def text(self) -> str:
        """The words without weights."""
        return "".join(text for text, _ in self.spans)


def plain_prompt(text: str) -> tuple[SubPrompt, ...]:
    """Return the text as one prompt, with brackets and AND as ordinary characters."""
    return (SubPrompt(((text, 1.0),)),)


def is_plain(text: str) -> bool:
    """Return whether a text has no prompt syntax, so that `parse_prompt` leaves it as it is."""
    return not re.search(r"[()\[\]]|\\[()\[\]\\]|\bAND\b", text)


def escape(text: str) -> str:
    r"""Put backslashes before all prompt syntax, so that `parse_prompt` returns the text itself."""
    return re.sub(r"[()\[\]\\]|\bAND\b", r"\\\g<0>", text)


def parse_prompt(text: str) -> tuple[SubPrompt, ...]:
    """Return the prompts in a text, without the syntax.

    Raises:
        UserError: brackets do not match, or shares or weights make no sense.
    """
    pieces = split_at_and(text)
    if len(pieces) == 1:
        return (SubPrompt(parse_weights(text, text)),)
    matches = [NUMBER.search(piece) for piece in pieces]
    bodies = [
        piece[: match.start()] if match else piece
        for piece, match in zip(pieces, matches, strict=True)
    ]
    if not all(body.strip() for body in bodies):
        raise UserError(rf"{text!r}: AND stands between two prompts. For the word, write \AND.")
    shares = [float(match[1]) for match in matches if match]
    if not shares:
        shares = [1 / len(pieces)] * len(pieces)
    if len(shares) < len(pieces):
        raise UserError(
            f"{text!r} gives a share to some of its prompts only. Give one to each, as in "
            "'cat :0.7 AND dog :0.3', or to none."
        )
    if not 0 < sum(shares) < math.inf:
        raise UserError(f"{text!r}: the shares of its prompts must add up to more than 0.")
    return tuple(
        SubPrompt(parse_weights(body, text), share)
        for body, share in zip(bodies, shares, strict=True)
    )


def split_at_and(text: str) -> list[str]:
    """Split a text at each AND outside of brackets."""
    pieces, depth = [""], 0
    for token in TOKEN.findall(text):
        depth += (token in "([") - (token in ")]")
        if token == "AND" and depth <= 0:
            pieces.append("")
        else:
            pieces[-1] += token
    return pieces


def parse_weights(text: str, prompt: str) -> tuple[Span, ...]:
    """Return the spans of one prompt with their weights; neighbors of equal weight are one span.

    prompt: all of the text, for messages.
    """
    spans: list[Span] = []
    opened: list[tuple[str, int]] = []  # each open bracket, and the number of spans before it
    for token in TOKEN.findall(text):
        if token in ("(", "["):
            opened.append((token, len(spans)))
        elif token in (")", "]"):
            if not opened or opened[-1][0] + token not in ("()", "[]"):
                raise unmatched(prompt, token)
            bracket, first = opened.pop()
            spans[first:] = close_bracket(spans[first:], bracket, prompt)
        else:
            spans.append((token.removeprefix("\\") or "\\", 1.0))
    if opened:
        raise unmatched(prompt, opened[-1][0])
    return join_spans(spans)


def close_bracket(inner: list[Span], bracket: str, prompt: str) -> list[Span]:
    """Apply the weight of a bracket to the spans in it; a number at their end is taken out.

    prompt: all of the text, for messages.
    """
    number = NUMBER.search("".join(text for text, _ in inner))
    if number is None:
        factor = BRACKET_WEIGHT if bracket == "(" else 1 / BRACKET_WEIGHT
    elif bracket == "[":
        raise UserError(
            f"{prompt!r}: square brackets take no number. Write (word:0.8) for less, or \\[ for "
            "the bracket itself."
        )
    else:
        factor = float(number[1])
        inner = first_characters(inner, number.start())
    weighted = [(text, weight * factor) for text, weight in inner]
    if not all(math.isfinite(weight) for _, weight in weighted):
        raise UserError(f"{prompt!r}: its weights multiply to more than a number can hold.")
    return weighted


def first_characters(spans: list[Span], count: int) -> list[Span]:
    """Return the spans cut after `count` characters."""
    result: list[Span] = []
    for text, weight in spans:
        if text[:count]:
            result.append((text[:count], weight))
        count = max(0, count - len(text))
    return result


def join_spans(spans: list[Span]) -> tuple[Span, ...]:
    """Join neighbors of equal weight; without any span, return one of empty text."""
    result: list[Span] = []
    for text, weight in spans:
        if result and math.isclose(result[-1][1], weight, rel_tol=1e-12):
            result[-1] = (result[-1][0] + text, result[-1][1])
        else:
            result.append((text, weight))
    return tuple(result) or (("", 1.0),)


def unmatched(prompt: str, bracket: str) -> UserError:
    """Make the error for a bracket without a partner."""
    return UserError(
        f"{prompt!r}: the bracket {bracket} has no partner. Brackets weight words, as in (red:1.3) "
        f"heart; for the bracket itself write \\{bracket}, or read all prompts as plain text "
        "(plain_prompts)."
    )
