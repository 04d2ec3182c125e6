"""Ids of multilingual tokenizers equal those of transformers, with the same tokenizer.json."""

import json
from copy import deepcopy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast, XLMRobertaTokenizer

from conditioning.unigram_tokenizer import UnigramTokenizer, load_unigram, save_unigram
from conditioning.xlm_roberta import XlmRobertaConfig
from foundation.errors import MissingFileError, UserError
from tests.helpers.text_encoders import SENTENCES, VOCABULARY, write_unigram_tokenizer

CONFIG = XlmRobertaConfig(vocab_size=VOCABULARY, max_position_embeddings=26)
TEXTS = [
    *SENTENCES,
    "",
    "  two  spaces\tand a line\nbreak ",
    "ﬁne print, ① and e\u0301 é",  # changed by NFKC
    "\u200fتفاح\u200e",  # marks of direction
    "<mask> </s> a < s>",
    "👩🏽\u200d🚀",
    "word " * 40,
]


def padded(tokenizer, texts: list[str], length: int = 24) -> torch.Tensor:
    options = {"padding": "max_length", "truncation": True, "max_length": length}
    return tokenizer(texts, return_tensors="pt", **options).input_ids


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "normalized"])
def folder(request, tmp_path_factory):
    return write_unigram_tokenizer(tmp_path_factory.mktemp("unigram"), normalized=request.param)


def peer(folder) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"),
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
    )


def test_ids_are_those_of_transformers(folder):
    ours = load_unigram(folder, CONFIG)
    assert torch.equal(ours(TEXTS), padded(peer(folder), TEXTS))
    assert ours.count("") == 2 and ours.count(TEXTS[-1]) > 24 == ours.context_length


def test_our_files_open_as_the_tokenizer_of_xlm_roberta(tmp_path):
    ours = load_unigram(write_unigram_tokenizer(tmp_path / "theirs"), CONFIG, length=9)
    save_unigram(ours, tmp_path / "ours")
    theirs = XLMRobertaTokenizer.from_pretrained(tmp_path / "ours")
    assert theirs.model_max_length == 9
    assert torch.equal(ours(TEXTS), padded(theirs, TEXTS, 9))
    again = load_unigram(tmp_path / "ours", CONFIG)
    assert again == ours and torch.equal(again(TEXTS), ours(TEXTS))
    assert torch.equal(deepcopy(ours)(TEXTS), ours(TEXTS))


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    folder = write_unigram_tokenizer(tmp_path_factory.mktemp("both"), normalized=True)
    return load_unigram(folder, CONFIG), peer(folder)


@given(st.text(max_size=30))
def test_any_text_has_the_ids_of_transformers(both, text):
    ours, theirs = both
    assert torch.equal(ours([text]), padded(theirs, [text]))


def test_wrong_files_are_named(folder, tmp_path):
    with pytest.raises(MissingFileError, match=r"tokenizer\.json .*save_pretrained"):
        load_unigram(tmp_path, CONFIG)
    with pytest.raises(UserError, match="has 30 tokens"):
        load_unigram(folder, XlmRobertaConfig(vocab_size=30))
    with pytest.raises(UserError, match="pads with the id 1"):
        load_unigram(folder, XlmRobertaConfig(vocab_size=VOCABULARY, pad_token_id=0))
    content = json.loads((folder / "tokenizer.json").read_text())
    for model, pattern in (
        ({"type": "BPE"}, "no unigram"),
        ({"type": "Unigram", "unk_id": 3}, "damaged"),
        ({**content["model"], "unk_id": None}, "unknown characters"),
    ):
        with pytest.raises(UserError, match=pattern):
            UnigramTokenizer(content=json.dumps({**content, "model": model}), context_length=9)
    with pytest.raises(UserError, match="no token '<start>'"):
        UnigramTokenizer(content=json.dumps(content), context_length=9, start="<start>")
    with pytest.raises(UserError, match="3 is the least"):
        UnigramTokenizer(content=json.dumps(content), context_length=2)
