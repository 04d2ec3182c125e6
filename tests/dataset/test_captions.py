"""Parsers of captions: JSONL, CSV and JSON files give back the captions in them."""

import csv
import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataset.captions.guesses import has_word, plain_words
from dataset.captions.rows import Row
from dataset.captions.sidecars import split_lines
from dataset.captions.text_tables import read_captions_json, read_csv, read_jsonl
from dataset.folder import read_folder
from foundation.errors import UserError
from tests.helpers.images import picture, write_metadata

TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"))


def captions_only(rows: list[Row]) -> list[tuple[str, list[str]]]:
    return [(row.image, row.captions) for row in rows]


def stripped(texts: list[str]) -> list[str]:
    return [text.strip() for text in texts if text.strip()]


@given(st.lists(st.tuples(TEXT, st.lists(TEXT))), st.booleans())
def test_jsonl_round_trip(rows, ascii_only):
    lines = [json.dumps({"file_name": n, "text": t}, ensure_ascii=ascii_only) for n, t in rows]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "metadata.jsonl"
        path.write_text("\n\n".join(lines), encoding="utf-8", newline="\n")
        read = captions_only(list(read_jsonl(path)))
    assert read == [(name, stripped(texts)) for name, texts in rows]


@given(st.lists(st.tuples(TEXT, TEXT)))
def test_csv_round_trip(rows):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "metadata.csv"
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, quoting=csv.QUOTE_ALL)
            writer.writerows([("file_name", "text"), *rows])
        read = captions_only(list(read_csv(path)))
    expected = [(normalize(name), stripped([normalize(text)])) for name, text in rows]
    assert read == expected


def normalize(text: str) -> str:
    """Python reads text files with line ends as line feeds."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


@given(st.dictionaries(TEXT, st.one_of(TEXT, st.lists(TEXT))))
def test_captions_json_round_trip(captions):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "captions.json"
        path.write_text(json.dumps(captions), encoding="utf-8")
        read = captions_only(list(read_captions_json(path)))
    texts = {name: [text] if isinstance(text, str) else text for name, text in captions.items()}
    assert read == [(name, stripped(text)) for name, text in texts.items()]


@pytest.mark.parametrize("content", ["3", '"text"', '[["a.png", "x"]]', "{"])
def test_captions_json_of_another_structure_is_refused(tmp_path, content):
    (tmp_path / "captions.json").write_text(content)
    with pytest.raises(UserError, match=r"captions\.json"):
        list(read_captions_json(tmp_path / "captions.json"))


@given(TEXT)
def test_lines_are_not_empty_and_lose_no_character(text):
    lines = split_lines(text)
    assert all(lines) and not any("\n" in line for line in lines)
    assert "".join("".join(lines).split()) == "".join(text.split())


@pytest.mark.parametrize(
    ("name", "words"), [("red_apple-tree", "red apple tree"), (" a--b__c ", "a b c")]
)
def test_names_become_words(name, words):
    assert plain_words(name) == words


@pytest.mark.parametrize(
    ("text", "expected"),
    [("red apple", True), ("apple 3", True), ("0017", False), ("1F469 200D", False), ("", False)],
)
def test_words_have_letters_and_no_digit(text, expected):
    assert has_word(text) is expected


def test_a_table_may_write_names_with_other_capitals(tmp_path):
    """Unless two of its names are one file, as where a disk does not distinguish capitals."""
    for name in ("a.png", "Deep/b.png", "c.png", "d.png"):
        picture(tmp_path / name)
    names = ["A.PNG", "deep\\b.PNG", "c.png", "C.png", "D.png", "d.PNG"]
    write_metadata(tmp_path, [{"file_name": name, "text": f"of {name}"} for name in names])
    folder = read_folder(tmp_path, allow_missing_captions=True)
    found = {pair.path.name: pair.captions for pair in folder.pairs}
    assert found["a.png"] == ("of A.PNG",) and found["b.png"] == ("of deep\\b.PNG",)
    assert found["c.png"] == ("of c.png",) and found["d.png"] == ("",)
    reasons = {entry.path.name: entry.reason for entry in folder.unusable}
    assert reasons.keys() == {"C.png", "D.png", "d.PNG"}
    assert "c.png" in reasons["C.png"] and "line 4" in reasons["C.png"]
