"""Token ids are those of Hugging Face's CLIPTokenizer, from our files and from theirs."""

import json

import open_clip
import pytest
import torch
from transformers import CLIPTokenizer

from conditioning.tokenizer import END_OF_TEXT, clean, merge
from conditioning.tokenizer_io import (
    OPEN_CLIP_PAD,
    clip_tokenizer,
    dump,
    load_tokenizer,
    save_tokenizer,
)
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
    """Newer versions write one tokenizer.json in place of the four files."""
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


def test_exclamation_marks_are_text_unless_they_are_the_padding():
    assert clip_tokenizer(77).encode("wow!") == [2781, 256]
    assert clip_tokenizer(77, pad=OPEN_CLIP_PAD).encode("wow!") == [2781, 0]


def test_clean_lowers_letter_by_letter_as_hugging_face_does():
    assert clean("ΟΔΟΣ  \n A\u030a") == "οδοσ å"


def test_merge_takes_the_lowest_rank_first_and_never_its_own_result():
    ranks = {("a", "a"): 0, ("aa", "a</w>"): 1}
    assert merge(list("aaa"), ranks) == ["aaa</w>"]
    assert merge(list("aaaa"), ranks) == ["aa", "a", "a</w>"]
    assert merge(list("aaaaa"), ranks) == ["aa", "aaa</w>"]
    assert merge(list("xyz"), ranks) == ["x", "y", "z</w>"]


def test_files_of_two_tokenizers_are_refused(tmp_path):
    save_tokenizer(clip_tokenizer(77), tmp_path)
    (tmp_path / "vocab.json").write_text(dump({"a": 0, "b</w>": 1}))
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    del settings["added_tokens_decoder"]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match="do not belong together"):
        load_tokenizer(tmp_path, 77)


def test_a_context_without_room_for_text_is_refused():
    with pytest.raises(ValueError, match="no room for text"):
        clip_tokenizer(2)
