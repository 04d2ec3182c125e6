"""Token ids equal those of transformers' CLIPTokenizer, with our files and with theirs."""

import functools
import json
from pathlib import Path
from tempfile import TemporaryDirectory

import open_clip
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from transformers import CLIPTokenizer

from conditioning.tokenizer import (
    BYTE_SYMBOLS,
    END_OF_TEXT,
    END_OF_WORD,
    OPEN_CLIP_PAD,
    Tokenizer,
    clean,
    clip_tokenizer,
    load_tokenizer,
    merge,
    save_tokenizer,
)
from foundation.errors import UserError
from tests.helpers.prompts import ORDINARY, PROMPTS


def ids_of_transformers(tokenizer: CLIPTokenizer, length: int) -> torch.Tensor:
    encoded = tokenizer(
        PROMPTS, padding="max_length", max_length=length, truncation=True, return_tensors="pt"
    )
    return encoded.input_ids


def test_there_are_200_awkward_prompts():
    assert len(set(PROMPTS)) >= 200


@pytest.mark.parametrize("pad", [END_OF_TEXT, OPEN_CLIP_PAD])
@pytest.mark.parametrize("length", [77, 24])
def test_saved_files_give_the_same_ids_in_transformers(tmp_path, pad, length):
    ours = clip_tokenizer(length, pad=pad)
    save_tokenizer(ours, tmp_path)
    theirs = CLIPTokenizer.from_pretrained(tmp_path)
    assert theirs.model_max_length == length
    assert theirs.pad_token_id == {END_OF_TEXT: 49407, OPEN_CLIP_PAD: 0}[pad]
    assert torch.equal(ours(PROMPTS), ids_of_transformers(theirs, length))
    assert torch.equal(load_tokenizer(tmp_path, 77)(PROMPTS), ours(PROMPTS))
    assert load_tokenizer(tmp_path, 77) == ours


def test_files_that_transformers_saved_again_give_the_same_ids(tmp_path):
    """Newer versions of transformers write one tokenizer.json in place of the four files."""
    ours = clip_tokenizer(77, pad=OPEN_CLIP_PAD)
    save_tokenizer(ours, tmp_path / "ours")
    CLIPTokenizer.from_pretrained(tmp_path / "ours").save_pretrained(tmp_path / "theirs")
    assert torch.equal(load_tokenizer(tmp_path / "theirs", 77)(PROMPTS), ours(PROMPTS))


def test_ids_are_those_of_open_clip_for_text_that_needs_no_repair():
    texts = [text for text in ORDINARY if "!" not in text]
    assert torch.equal(clip_tokenizer(77, pad=OPEN_CLIP_PAD)(texts), open_clip.tokenize(texts))


def test_long_text_is_cut_and_the_end_token_survives():
    tokenizer = clip_tokenizer(8)
    assert tokenizer(["one two three four five six seven eight"])[0, [0, -1]].tolist() == [
        49406,
        49407,
    ]
    assert tokenizer.count("one two three four five six seven eight") == 10
    assert tokenizer.count("") == 2


def test_an_exclamation_mark_is_text_unless_it_is_the_padding():
    assert clip_tokenizer(77).encode("wow!") == [2781, 256]
    assert clip_tokenizer(77, pad=OPEN_CLIP_PAD).encode("wow!") == [2781, 0]


def test_clean_lowers_letter_by_letter_as_transformers_does():
    assert clean("ΟΔΟΣ  \n A\u030a") == "οδοσ å"


def test_merge_takes_the_lowest_rank_first_and_never_its_own_result():
    ranks = {("a", "a"): 0, ("aa", "a</w>"): 1}
    assert merge(list("aaa"), ranks) == ["aaa</w>"]
    assert merge(list("aaaa"), ranks) == ["aa", "a", "a</w>"]
    assert merge(list("aaaaa"), ranks) == ["aa", "aaa</w>"]
    assert merge(list("xyz"), ranks) == ["x", "y", "z</w>"]


def test_files_of_two_tokenizers_are_refused(tmp_path):
    save_tokenizer(clip_tokenizer(77), tmp_path)
    (tmp_path / "vocab.json").write_text(json.dumps({"a": 0, "b</w>": 1}))
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    del settings["added_tokens_decoder"]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match=r"startoftext"):
        load_tokenizer(tmp_path, 77)


def test_a_context_without_room_for_text_is_refused():
    with pytest.raises(UserError, match=r"\b2\b.*\b3\b"):
        clip_tokenizer(2)


def test_a_damaged_list_of_merges_is_refused(tmp_path):
    save_tokenizer(clip_tokenizer(77), tmp_path)
    with (tmp_path / "merges.txt").open("a") as file:
        file.write("one two three\n")
    with pytest.raises(UserError, match="one two three"):
        load_tokenizer(tmp_path, 77)


def test_special_tokens_may_be_missing_or_switched_off(tmp_path):
    """Files of other tools write null for a token, and flags whose names end in _token."""
    save_tokenizer(clip_tokenizer(77), tmp_path)
    file = tmp_path / "tokenizer_config.json"
    settings = json.loads(file.read_text())
    del settings["added_tokens_decoder"]
    file.write_text(json.dumps({**settings, "pad_token": None, "add_bos_token": True}))
    (tmp_path / "special_tokens_map.json").unlink()
    loaded = load_tokenizer(tmp_path, 77)
    assert loaded.pad == END_OF_TEXT
    assert torch.equal(loaded(PROMPTS), clip_tokenizer(77)(PROMPTS))


@functools.cache
def both_tokenizers() -> tuple[Tokenizer, CLIPTokenizer]:
    """Make our tokenizer, and that of transformers from the files that ours has saved."""
    ours = clip_tokenizer(77)
    with TemporaryDirectory() as folder:
        save_tokenizer(ours, Path(folder))
        return ours, CLIPTokenizer.from_pretrained(folder)


# Libraries with other versions of Unicode disagree about code points that are not assigned.
assigned = st.characters(exclude_categories=("Cs", "Cn", "Co"))
letters = st.text("abcdefghijklmnopqrstuvwxyz", min_size=1, max_size=8)
signs = st.sampled_from(
    ["'s", "'ll", "!", "...", " ", "  ", "\t", "42", "é", "Σ", "🏳️‍🌈", END_OF_TEXT]
)
texts = st.lists(letters | signs | st.text(assigned, max_size=5), max_size=10).map("".join)


@given(text=texts)
@example(text="A\u030a ΟΔΟΣ <|ENDOFTEXT|>")
def test_ids_of_any_text_equal_those_of_transformers(text):
    ours, theirs = both_tokenizers()
    assert ours.encode(text) == theirs(text, add_special_tokens=False).input_ids


def decode(tokenizer: Tokenizer, ids: list[int]) -> str:
    """Return the text of ids, without the spaces that stood between words."""
    symbols = {number: symbol for symbol, number in tokenizer.vocabulary.items()}
    text = "".join(symbols[number].removesuffix(END_OF_WORD) for number in ids)
    return bytes(BYTE_SYMBOLS.index(symbol) for symbol in text).decode()


@given(text=st.text(assigned, max_size=20))
@example(text="女宇航员 中等肤色")
@example(text="رائدة فضاء بشرة")
@example(text="\u200fفضانورد\u200f می\u200cشود")  # marks of direction, and one between letters
@example(text="한국어 日本語 ไทย हिन्दी עברית")
def test_no_text_of_any_script_is_lost(text):
    ours, _ = both_tokenizers()
    assert decode(ours, ours.encode(text)) == clean(text).replace(" ", "")


@given(text=texts, length=st.integers(3, 90))
def test_any_text_becomes_ids_of_the_context_length(text, length):
    tokenizer = Tokenizer(**{**vars(both_tokenizers()[0]), "context_length": length})
    (ids,) = tokenizer([text])
    count = min(tokenizer.count(text), length)
    assert len(ids) == length and ids[0] == 49406
    assert ids[count - 1] == 49407 and (ids[count:] == 49407).all()
