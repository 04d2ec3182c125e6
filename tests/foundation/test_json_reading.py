"""Any JSON becomes a value of the declared type, or one message with its place."""

import json
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foundation.errors import UserError
from foundation.json_reading import check_limits, check_type, from_json, load_json, load_object

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Inner:
    weight: float = 1.0
    kind: Literal["l1", "l2"] = "l1"


@dataclass(frozen=True)
class Outer:
    width: int
    names: tuple[str, ...] = ()
    size: int | tuple[int, int] | None = None
    check: bool = False
    folder: Path = Path("x")
    loss: Inner = field(default_factory=Inner)
    counts: dict[str, int] = field(default_factory=dict)

    def __post_init__(self):
        if self.width == 13:
            raise UserError("width 13 is unlucky")


GOOD: dict[str, Any] = {
    "width": 3,
    "names": ["a", "b"],
    "size": [4, 5],
    "check": True,
    "folder": "a/b",
    "loss": {"weight": 2, "kind": "l2"},
    "counts": {"x": 1},
}
VALUES = [None, True, False, 0, 3, 2.5, "3", "true", [], [1], [True, 2], ["a"], {}, {"x": 1.5}]


@pytest.mark.parametrize(
    ("text", "pattern"),
    [
        ("[" * 100_000, "64"),
        ('{"a":' * 100_000, "64"),
        ("[" * 70 + "]" * 70, "64"),
        ('{"a": NaN}', "NaN"),
        ('{"a": -Infinity}', "Infinity"),
        ('{"a": 1e999}', "1e999"),
        ('{"a": 1, "a": 2}', "'a'"),
        ('{"a": "\\ud800"}', "ud800"),
        ('{"a": "\\udcff"}', "udcff"),
        ('{"\\ud800": 1}', "ud800"),
        ("9" * 5000, "5000"),
        ("", "line 1 column 1"),
        (b"\xff", "0xff"),
    ],
)
def test_text_that_is_no_json_is_refused_in_one_short_message(text, pattern):
    with pytest.raises(UserError, match=pattern) as caught:
        load_json(text)
    assert len(str(caught.value)) < 600


def test_depth_is_that_of_lists_and_objects_alone():
    assert load_json("[" * 64 + "]" * 64)
    assert load_json('"' + "[" * 100 + '"') == "[" * 100


def test_what_python_writes_can_be_allowed():
    value = load_json('[NaN, Infinity, "\\udcff"]', not_finite=True, raw_bytes=True)
    assert str(value) == "[nan, inf, '\\udcff']"


@pytest.mark.parametrize("text", ["3", "[]", "null", '"x"', "true"])
def test_an_object_is_needed_where_one_is_asked_for(text):
    with pytest.raises(UserError, match=r"f\.json"):
        load_object(text, Path("f.json"))


def test_a_dataclass_is_filled():
    outer = from_json(Outer, {**GOOD, "unknown": 1}, "f.json")
    assert json.loads(json.dumps(asdict(outer), default=str)) == GOOD
    assert type(outer.loss.weight) is float  # JSON wrote 2
    assert outer.size == (4, 5)


@pytest.mark.parametrize("name", GOOD)
@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_a_field_keeps_its_type_or_is_named(name, value):
    """What is accepted comes back equal, also in the type of every part."""
    try:
        made = from_json(Outer, {**GOOD, name: value}, "dir/f.json")
    except UserError as error:
        assert re.match(rf"dir/f\.json: {name}", str(error))
        return
    again = json.loads(json.dumps(asdict(made), default=str))[name]
    expected = {"weight": 1.0, "kind": "l1"} if name == "loss" else value
    assert json.dumps(again) == json.dumps(expected)


def test_errors_name_the_innermost_place():
    for path, content in {
        r"loss\.kind": {**GOOD, "loss": {"kind": "l3"}},
        r"names\[1\]": {**GOOD, "names": ["a", 2]},
        r"counts\.x": {**GOOD, "counts": {"x": True}},
        r"size\[0\]": {**GOOD, "size": [True, 2]},
        r"width is missing": {"names": []},
        r"unlucky": {**GOOD, "width": 13},
        r"too large": {**GOOD, "width": 10**30},
    }.items():
        with pytest.raises(UserError, match=rf"f\.json: .*{path}"):
            from_json(Outer, content, "f.json")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=8,
)


@settings(max_examples=200, deadline=None)
@given(st.fixed_dictionaries({}, optional={name: JSON for name in GOOD}))
def test_any_json_is_filled_in_or_refused(content):
    try:
        made = from_json(Outer, content, "f.json")
    except UserError as error:
        assert len(str(error)) < 1000
    else:
        assert type(made.width) is int
        assert type(made.check) is bool


def test_a_value_alone_is_checked():
    assert check_type({"a": 1}, dict[str, int], "f", "vocab") == {"a": 1}
    with pytest.raises(UserError, match=r"f: vocab\.a"):
        check_type({"a": "1"}, dict[str, int], "f", "vocab")


@pytest.mark.parametrize("width", [0, 10**9, (4, 10**9), (1,) * 100])
def test_numbers_that_would_fill_the_memory_are_refused(width):
    with pytest.raises(UserError, match="width"):
        check_limits(Outer(width), {"width": (1, 100)})


# What programs here send to each other through pipes is no input of users.
OTHERS = {
    "foundation/json_reading.py",
    "generation/compile.py",
    "training/watchdog.py",
}


def test_nobody_else_parses_json():
    """One reader bounds depth and types; `json.loads` does neither."""
    callers = set()
    for file in ROOT.rglob("*.py"):
        name = file.relative_to(ROOT).as_posix()
        if name.startswith((".", "tests/", "recipes/", "benchmarks/")) or not re.search(
            r"\bjson\.loads?\b", file.read_text(encoding="utf-8")
        ):
            continue
        callers.add(name)
    assert callers <= OTHERS
