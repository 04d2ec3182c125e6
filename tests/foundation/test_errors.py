"""Errors that users can mend, and the helpers of their messages."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foundation.errors import (
    LONGEST_MESSAGE,
    LONGEST_VALUE,
    MissingFileError,
    NotFiniteError,
    UserError,
    did_you_mean,
    listed,
    one_line,
    printable,
    shortened,
    shown,
    unknown_name,
)


def test_user_errors_are_also_the_errors_of_python_that_they_specialize():
    for kind, base in (
        (UserError, ValueError),
        (MissingFileError, FileNotFoundError),
        (NotFiniteError, FloatingPointError),
    ):
        with pytest.raises(base, match="12 files"):
            raise kind("12 files")
        assert issubclass(kind, UserError)
    assert str(MissingFileError("x/y is missing")) == "x/y is missing"


def test_similar_names_are_suggested():
    known = ["tiny-32", "small-64", "SD15"]
    assert "'tiny-32'" in did_you_mean("tiny32", known)
    assert "'SD15'" in did_you_mean("sd-15", known)  # upper and lower case are equal
    assert did_you_mean("nothing like it", known) == ""
    near = ["apple", "apples", "pear"]
    assert "'apple'" in did_you_mean("aple", near) and "apples" not in did_you_mean("aple", near)
    two = did_you_mean("aple", near, count=2)
    assert "'apple'" in two and "'apples'" in two and "pear" not in two


def test_an_unknown_name_is_reported_with_all_that_exist():
    message = str(unknown_name("dimm", ["ddim", "plms"], "sampler"))
    for word in ("sampler", "'dimm'", "'ddim'", "ddim, plms"):
        assert word in message


def test_long_lists_are_cut_and_counted():
    assert listed(range(5)) == "0, 1, 2, 3, 4"
    assert listed(range(6)).startswith("0, 1, 2, 3, 4, ...") and "6" in listed(range(6))
    assert listed(["a", "b"], limit=1).startswith("a, ...")
    assert listed([]) == ""


def test_messages_are_bounded_and_show_both_ends():
    text = str(UserError("begin" + "x" * 10**6 + "end"))
    assert len(text) < LONGEST_MESSAGE + 100 and "1,000,008" in text
    assert text.startswith("begin") and text.endswith("end")
    assert len(str(unknown_name("x" * 10**6, ["ddim"], "sampler"))) < 1000
    assert shortened("as it is") == "as it is"


VALUES = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(st.characters()),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters()), inner),
)


@given(VALUES)
def test_shown_values_are_short_printable_lines(value):
    text = shown(value)
    assert len(text) < 3 * LONGEST_VALUE and "\n" not in text and printable(text) == text
    text.encode()  # no half of a surrogate pair


def test_small_values_are_shown_as_python_writes_them():
    for value in ("a", 3, 0.5, None, [1, "b"], {"a": False}):
        assert shown(value) == repr(value)
    long = list(range(10**5))
    assert len(shown({str(k): long for k in range(1000)})) < 3 * LONGEST_VALUE
    assert len(shown(10**5000)) < 3 * LONGEST_VALUE


def test_what_steers_a_terminal_is_printed_as_escapes():
    assert printable("\x1b[31mred\x9b\x07\r\ud800\u202e") == (r"\x1b[31mred\x9b\x07\r\ud800\u202e")
    kept = "zwei \u00e4pfel \u732b\n\t\U0001f469\u200d\U0001f680 \u0645\u06cc\u200c\u062e"
    assert printable(kept) == kept
    assert one_line("a\nerror: b") == r"a\nerror: b"
