r"""Prompts are parsed exactly as the syntax says, and mistakes are refused."""

import math
import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from conditioning.prompt_syntax import SubPrompt, escape, is_plain, parse_prompt, plain_prompt
from foundation.errors import UserError


def read(text: str) -> list[tuple[str, float]]:
    """Return the spans of a single prompt, with rounded weights."""
    (part,) = parse_prompt(text)
    assert part.share == 1
    return [(span, round(weight, 6)) for span, weight in part.spans]


@pytest.mark.parametrize(
    ("text", "spans"),
    [
        ("red heart", [("red heart", 1)]),
        ("", [("", 1)]),
        ("(red) heart", [("red", 1.1), (" heart", 1)]),
        ("((red)) heart", [("red", 1.21), (" heart", 1)]),
        ("a [red] heart", [("a ", 1), ("red", 0.909091), (" heart", 1)]),
        ("[[red]]", [("red", 0.826446)]),
        ("a (red:1.3) heart", [("a ", 1), ("red", 1.3), (" heart", 1)]),
        ("(red heart : 0.5 )", [("red heart", 0.5)]),
        ("(red:0)", [("red", 0)]),
        ("(red:-.5)", [("red", -0.5)]),
        ("(a (red:1.5) heart:2)", [("a ", 2), ("red", 3), (" heart", 2)]),
        ("(a [red] dog:1.1)", [("a ", 1.1), ("red", 1), (" dog", 1.1)]),
        ("([red])", [("red", 1)]),
        ("(a)(b)", [("ab", 1.1)]),
        ("()", [("", 1)]),
        (r"bird \(side view\)", [("bird (side view)", 1)]),
        (r"(bird \(side view\):1.2)", [("bird (side view)", 1.2)]),
        (r"\[x\] \\(y)", [("[x] \\", 1), ("y", 1.1)]),
        (r"back\slash", [(r"back\slash", 1)]),
        ("(flag: Japan)", [("flag: Japan", 1.1)]),
        ("clock 10:30", [("clock 10:30", 1)]),
        ("(ratio 3:4:1)", [("ratio 3:4", 1)]),
        ("BAND ANDY and", [("BAND ANDY and", 1)]),
        (r"salt \AND pepper", [("salt AND pepper", 1)]),
        ("(salt AND pepper:2)", [("salt AND pepper", 2)]),  # in a bracket it is a word
        ("two\nlines (now)", [("two\nlines ", 1), ("now", 1.1)]),
    ],
)
def test_weights(text, spans):
    assert read(text) == spans


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("cat AND dog", [("cat ", 0.5), (" dog", 0.5)]),
        ("cat :0.7 AND dog :0.3", [("cat", 0.7), (" dog", 0.3)]),
        ("cat:1 AND dog : 1 AND owl:.5", [("cat", 1), (" dog", 1), (" owl", 0.5)]),
        ("cat :1.5 AND dog :-0.5", [("cat", 1.5), (" dog", -0.5)]),
    ],
)
def test_several_prompts_and_their_shares(text, parts):
    assert [(part.text, part.share) for part in parse_prompt(text)] == parts


def test_parts_have_weights_of_their_own():
    first, second = parse_prompt("a (cat:1.5) :0.6 AND [dog] :0.4")
    assert first == SubPrompt((("a ", 1.0), ("cat", 1.5)), 0.6)
    assert second.spans[1] == ("dog", 1 / 1.1) and second.share == 0.4


@pytest.mark.parametrize("text", ["(a [b] c:2)", "x AND y", r"\(", "[[", ":-)"])
def test_plain_reads_everything_as_it_is_written(text):
    assert plain_prompt(text) == (SubPrompt(((text, 1.0),)),)
    assert not is_plain(text)


@pytest.mark.parametrize("text", ["red heart", "flag: Japan", r"back\slash", "a: b :0.5", "ANDY"])
def test_what_has_no_signs_is_plain(text):
    assert is_plain(text) and parse_prompt(text) == plain_prompt(text)


@pytest.mark.parametrize(
    ("text", "advice"),
    [
        ("a) b", r"\\\)"),
        ("(a", r"\\\("),
        ("[a", r"\\\["),
        ("(a]", r"\\\]"),
        ("smile :-)", "plain_prompts"),
        ("(a AND b", r"\\\("),
        ("[red:0.5]", r"\(word:0\.8\)"),
        ("cat :0.7 AND dog", "cat :0.7 AND dog"),
        ("cat AND", r"\\AND"),
        ("cat :1 AND dog :-1", "0"),
        (f"(red:{'9' * 400})", "red"),  # more than a float holds
        (f"cat :{'9' * 400} AND dog :1", "cat"),
    ],
)
def test_mistakes_are_refused_with_advice(text, advice):
    with pytest.raises(UserError, match=advice):
        parse_prompt(text)


SYNTAX = ["(", ")", "[", "]", "\\", ":", ".", "-", "0", "1.5", "AND", " AND ", " ", "\n", "a", "é"]
prompts = st.lists(st.sampled_from(SYNTAX) | st.text(max_size=3), max_size=12).map("".join)


@given(prompts)
@example("((((a:2):2)")
def test_any_text_is_parsed_or_refused(text):
    """There is no other error than UserError, and no weight that is not finite."""
    try:
        parts = parse_prompt(text)
    except UserError:
        return
    assert parts and all(part.spans for part in parts)
    assert all(math.isfinite(weight) for part in parts for _, weight in part.spans)
    assert sum(part.share for part in parts) > 0


@given(prompts)
def test_plain_text_has_weights_of_one(text):
    """`is_plain` says of which texts this is true."""
    if is_plain(text):
        assert parse_prompt(text) == plain_prompt(text)


@given(prompts)
@example(r"\AND")
@example("back\\slash (red:1.3) AND [AND]")
def test_escaped_text_is_read_as_it_was(text):
    assert parse_prompt(escape(text)) == plain_prompt(text)


@given(st.text(st.characters(exclude_characters="()[]\\:"), min_size=1), st.floats(-9, 9))
def test_a_weight_is_read_as_it_was_written(words, weight):
    """White space before the colon belongs to the number."""
    (part,) = parse_prompt(f"({words}:{weight:.6f})")
    assert part.text == re.sub(r"\s+$", "", words)
    assert all(given == pytest.approx(weight, abs=1e-6) for _, given in part.spans)
