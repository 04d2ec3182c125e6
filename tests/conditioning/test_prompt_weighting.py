"""Contexts of weighted and of long prompts equal their definition."""

import pytest
import torch

from conditioning.prompt_syntax import parse_prompt
from conditioning.prompt_weighting import encode_chunks, encode_weighted, truncated_words
from tests.helpers.text_encoders import small_encoder


@pytest.fixture(scope="module")
def encoder():
    return small_encoder(max_position_embeddings=8)


def encode(encoder, text: str, chunks: int = 1) -> torch.Tensor:
    (part,) = parse_prompt(text)
    return encode_weighted(encoder, part.spans, chunks)


@pytest.mark.parametrize("text", ["a red heart", "a (red:1) heart", "a ([red]) heart"])
def test_weights_of_one_change_no_bit_of_the_context(encoder, text):
    assert torch.equal(encode(encoder, text), encoder(["a red heart"]))


@pytest.mark.parametrize("weight", [0.0, 0.5, 1.3, -1.0])
def test_a_weighted_word_lies_on_the_line_from_the_empty_prompt(encoder, weight):
    plain, empty = encoder(["a red heart"])[0], encoder([""])[0]
    context = encode(encoder, f"a (red:{weight}) heart")[0]
    torch.testing.assert_close(context[2], empty[2] + weight * (plain[2] - empty[2]))
    others = [k for k in range(len(plain)) if k != 2]
    assert torch.equal(context[others], plain[others])  # start, end and padding, too
    if weight == 0:
        torch.testing.assert_close(context[2], empty[2])


def test_several_words_and_weights(encoder):
    plain, empty = encoder(["red cat big"])[0], encoder([""])[0]
    context = encode(encoder, "(red cat:2) [big]")[0]
    for place, weight in ((1, 2.0), (2, 2.0), (3, 1 / 1.1)):
        expected = empty[place] + weight * (plain[place] - empty[place])
        torch.testing.assert_close(context[place], expected)


def test_a_long_prompt_by_chunks(encoder):
    """A chunk has eight tokens, two of which are its start and its end."""
    words = "one two three four five six seven (eight:0) nine"
    context = encode(encoder, words, chunks=2)
    assert context.shape == (1, 16, 32)
    assert torch.equal(context[:, :8], encoder(["one two three four five six"]))
    second, empty = encoder(["seven eight nine"])[0], encoder([""])[0]
    assert torch.equal(context[0, [8, 9, 11]], second[[0, 1, 3]])
    torch.testing.assert_close(context[0, 10], empty[2])


def test_short_prompts_fill_all_chunks(encoder):
    expected = torch.cat([encoder(["a cat"]), encoder([""])], dim=1)
    assert torch.equal(encode(encoder, "a cat", chunks=2), expected)


@pytest.mark.parametrize(
    ("text", "chunks", "end"),
    [
        ("one two three four five six", 1, ""),
        ("one two three four five six seven", 1, "seven"),
        ("one  two three four\nfive six seven eight, nine", 1, "seven eight, nine"),
        ("one two three four five six seven", 2, ""),
        ("one two three four five xqzxqzxqzxqz seven", 1, "xqzxqzxqzxqz seven"),  # cut in two
        ("", 1, ""),
    ],
)
def test_the_truncated_end_begins_with_the_first_cut_word(encoder, text, chunks, end):
    assert truncated_words(encoder, text, chunks) == end
    if not end and text and chunks == 1:
        assert encoder.count_tokens(text) <= encoder.tokens


def test_equal_chunks_are_encoded_once(encoder, monkeypatch):
    texts = ["a cat", "a dog", "a cat", ""]
    expected = torch.cat([encode_chunks(encoder, [text], 2) for text in texts])
    batches = []
    encode_ids = encoder.encode

    def encode(ids):
        batches.append(len(ids))
        return encode_ids(ids)

    monkeypatch.setattr(encoder, "encode", encode)
    contexts = encode_chunks(encoder, texts, 2)
    assert batches == [3]  # two captions, and padding alone
    torch.testing.assert_close(contexts, expected)


@pytest.mark.parametrize("before", ["", "one two "])
def test_a_sentence_without_spaces_is_cut_between_characters(encoder, before):
    sentence = "窓辺で眠る小さな猫と赤いリンゴの入った籠がある静かな部屋の絵"
    end = truncated_words(encoder, before + sentence)
    assert sentence.endswith(end) and end != sentence
    fitting = before + sentence.removesuffix(end)
    assert encoder.count_tokens(fitting) <= encoder.tokens
    assert encoder.count_tokens(fitting + end[0]) > encoder.tokens
