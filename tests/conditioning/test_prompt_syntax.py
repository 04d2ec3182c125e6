r"""What is read out of a prompt, exactly."""

import pytest

from conditioning.prompt_syntax import Part, is_plain, parse, plain


def read(text: str) -> list[tuple[str, float]]:
    (part,) = parse(text)
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
    assert [(part.text, part.share) for part in parse(text)] == parts


def test_parts_have_weights_of_their_own():
    first, second = parse("a (cat:1.5) :0.6 AND [dog] :0.4")
    assert first == Part((("a ", 1.0), ("cat", 1.5)), 0.6)
    assert second.spans[1] == ("dog", 1 / 1.1) and second.share == 0.4


@pytest.mark.parametrize("text", ["(a [b] c:2)", "x AND y", r"\(", "[[", ":-)"])
def test_plain_reads_everything_as_it_is_written(text):
    assert plain(text) == (Part(((text, 1.0),)),)
    assert not is_plain(text)


@pytest.mark.parametrize("text", ["red heart", "flag: Japan", r"back\slash", "a: b :0.5", "ANDY"])
def test_what_has_no_signs_is_plain(text):
    assert is_plain(text) and parse(text) == plain(text)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("a) b", r"bracket \) has no partner.*\\\)"),
        ("(a", r"bracket \( has no partner"),
        ("[a", r"bracket \[ has no partner"),
        ("(a]", r"bracket \] has no partner"),
        ("smile :-)", "as they are written: sample.py --plain-prompts"),
        ("(a AND b", r"bracket \( has no partner"),
        ("[red:0.5]", "square brackets take no number"),
        ("cat :0.7 AND dog", "to some of its prompts only"),
        ("cat AND", r"between two prompts.*\\AND"),
        ("cat :1 AND dog :-1", "more than 0"),
    ],
)
def test_what_means_nothing_is_refused_with_advice(text, match):
    with pytest.raises(ValueError, match=match):
        parse(text)
