"""Errors that users can mend, and the helpers of their messages."""

import pytest

from foundation.errors import (
    MissingFileError,
    NotFiniteError,
    UserError,
    did_you_mean,
    listed,
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
