"""Variants of captions, their weights and languages: what can be drawn, and how often."""

import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dataset.captions.choice import (
    NO_CHOICE,
    CaptionDraws,
    ChosenCaptions,
    caption_draws,
    choose_captions,
    count_languages,
)
from dataset.captions.rows import LARGEST_WEIGHT
from dataset.captions.variants import CaptionChoice, TagVariants, parse_languages, split_tags
from dataset.folder import read_folder
from dataset.images.transform import ImageTransform
from dataset.joining import JoinedTables
from dataset.latent_cache.cache import LatentCache
from dataset.loader import ImageBatches
from dataset.table import PairList, Table
from foundation.errors import UserError
from tests.helpers.data.latent_cache import IDENTITY, encode_letters
from tests.helpers.data.latent_cache import build as build_cache
from tests.helpers.data.parquet_files import write_parquet
from tests.helpers.images import picture, write_metadata
from tests.helpers.shards import write_shard

SHUFFLED = TagVariants(count=8, seed=1, shuffle=True)
TAGS = st.lists(st.text("abc é", min_size=1, max_size=4), max_size=8).map(", ".join)
ROWS = [
    {"text": ["a cat", "eine Katze", "a pet"], "caption_languages": ["en", "de", "en"]},
    {"text": ["a dog", "ein Hund"], "caption_languages": ["en", "DE"], "caption_weights": [3, 1]},
    {"text": ["un oiseau", "ein Vogel"], "caption_languages": ["fr", "de"]},
]


def read(root: Path, rows: list[dict], **options) -> PairList:
    """Write pictures with these rows of metadata, and read them."""
    for k in range(len(rows)):
        picture(root / f"{k}.png", seed=k)
    write_metadata(root, [{"file_name": f"{k}.png", **row} for k, row in enumerate(rows)])
    return read_folder(root, **options).pairs


def frequencies(draws, pair: int, count: int = 20_000) -> dict[str, float]:
    """Return how often each text of a pair is drawn."""
    numbers = torch.rand(count, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    positions = draws.draw(torch.full((count,), pair), numbers).tolist()
    shares: Counter[str] = Counter()
    for k, n in Counter(positions).items():
        shares[draws.texts[k]] += n / count
    return dict(shares)


def close_to(found: dict[str, float], expected: dict[str, float], count: int = 20_000) -> bool:
    """Return whether each share is within five standard deviations of what is expected."""
    return found.keys() == expected.keys() and all(
        abs(found[k] - p) < 5 * (p * (1 - p) / count) ** 0.5 + 1e-9 for k, p in expected.items()
    )


# Tags ---------------------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(TAGS, st.integers(0, 9), st.integers(0, 4), st.floats(0, 1), st.booleans())
def test_variants_keep_the_first_tags_and_take_none_twice(text, number, keep, dropout, shuffle):
    variants = TagVariants(count=8, seed=3, shuffle=shuffle, dropout=dropout, keep=keep)
    before, after = split_tags(text, ","), split_tags(variants.make(text, number), ",")
    assert after[:keep] == before[:keep]
    assert Counter(after) <= Counter(before)
    if dropout == 0:
        assert Counter(after) == Counter(before)
    if dropout == 1:
        assert after == before[:keep]
    if not shuffle:
        rest = iter(before)
        assert all(tag in rest for tag in after)
    assert variants.make(text, number) == variants.make(text, number)


def test_variants_depend_on_seed_and_number_and_cover_all_orders():
    made = [SHUFFLED.make("a, b, c", number) for number in range(600)]
    counts = Counter(made)
    assert len(counts) == 6 and min(counts.values()) > 60
    other = [replace(SHUFFLED, seed=2).make("a, b, c", number) for number in range(600)]
    assert made != other


def test_each_tag_is_left_out_as_often_as_asked_for():
    variants = TagVariants(count=1, seed=0, dropout=0.3)
    left = Counter(tag for k in range(2000) for tag in variants.make("a,b,c", k).split(", "))
    assert all(abs(left[tag] / 2000 - 0.7) < 0.05 for tag in "abc")


@pytest.mark.parametrize(
    ("separator", "text", "expected"),
    [(",", "a,, b ,", "a, b"), ("; ", "a, b; c", "a, b; c"), (" | ", "a | b", "a | b")],
)
def test_tags_are_stripped_and_joined_by_their_separator(separator, text, expected):
    assert TagVariants(count=1, seed=0, separator=separator).make(text, 0) == expected


def test_words_around_a_caption_are_no_tags_and_an_empty_caption_stays_empty(tmp_path):
    pairs = read(tmp_path, [{"text": "a, b"}, {"text": ""}], allow_missing_captions=True)
    choice = CaptionChoice(languages={}, prefix="art, ", suffix="end")
    chosen = choose_captions(pairs, choice)
    assert [pair.captions for pair in chosen] == [("art, a, b end",), ("",)]
    variants = TagVariants(count=4, seed=0, shuffle=True, dropout=0.5)
    texts = set(caption_draws(chosen, variants, 2).texts)
    assert texts <= {f"art, {tags} end" for tags in ("a, b", "b, a", "a", "b")} | {""}


# Draws --------------------------------------------------------------------------------------------


def test_captions_without_weights_are_drawn_as_they_always_were(tmp_path):
    pairs = read(tmp_path, [{"text": [f"{k} {j}" for j in range(1 + k % 4)]} for k in range(9)])
    draws = caption_draws(pairs)
    assert draws.chances is None
    numbers = torch.rand(900, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    indices = torch.arange(900) % 9
    drawn = [draws.texts[k] for k in draws.draw(indices, numbers).tolist()]
    captions = [pairs[k].captions for k in indices.tolist()]
    assert drawn == [c[int(n * len(c))] for c, n in zip(captions, numbers.tolist(), strict=True)]
    arguments = (pairs, ImageTransform(8), 4, 0)
    plain, drawing = ImageBatches(*arguments), ImageBatches(*arguments, draws=draws)
    assert all(plain[step][1] == drawing[step][1] for step in range(20))


@settings(max_examples=25, deadline=None)
@given(st.lists(st.sampled_from([0, 0.5, 1, 3, LARGEST_WEIGHT]), min_size=1, max_size=6))
def test_a_caption_without_weight_is_never_drawn(weights):
    if not any(weights):
        return
    chances = np.cumsum(weights) / np.sum(weights)
    draws = caption_draws_of(chances)
    ends = np.array([0, *np.nextafter(chances[:-1], 0), *chances[:-1], np.nextafter(1, 0)])
    numbers = torch.from_numpy(np.clip(ends, 0, np.nextafter(1, 0)))
    drawn = draws.draw(torch.zeros(len(numbers), dtype=torch.long), numbers).tolist()
    assert all(0 <= k < len(weights) and weights[k] > 0 for k in drawn)


def caption_draws_of(chances):
    names = [str(k) for k in range(len(chances))]
    return CaptionDraws(names, np.array([0, len(chances)]), chances)


def test_weights_say_how_often_a_caption_is_drawn(tmp_path):
    rows = [{"text": ["a", "b", "c"], "caption_weights": [1, 0, 3]}, {"text": ["d", "e"]}]
    pairs = read(tmp_path, rows)
    for variants in (None, replace(SHUFFLED, count=5)):
        draws = caption_draws(choose_captions(pairs, NO_CHOICE), variants, 1)
        assert close_to(frequencies(draws, 0), {"a": 0.25, "c": 0.75})
        assert close_to(frequencies(draws, 1), {"d": 0.5, "e": 0.5})


@pytest.mark.parametrize(
    ("languages", "expected"),
    [
        ("en,de", [{"a cat": 1 / 3, "eine Katze": 1 / 3, "a pet": 1 / 3}, {"a dog": 0.75}]),
        ("de=3,en=1", [{"a cat": 1 / 8, "a pet": 1 / 8, "eine Katze": 0.75}, {"a dog": 0.25}]),
        ("de", [{"eine Katze": 1}, {"ein Hund": 1}]),
    ],
)
def test_captions_are_drawn_from_the_languages_that_are_chosen(tmp_path, languages, expected):
    chosen = choose_captions(
        read(tmp_path, ROWS), CaptionChoice(languages=parse_languages(languages))
    )
    draws = caption_draws(chosen)
    assert close_to(frequencies(draws, 0), expected[0])
    assert close_to(
        frequencies(draws, 1), {"ein Hund": 1 - sum(expected[1].values())} | expected[1]
    )
    assert frequencies(draws, 2) == {"ein Vogel": 1}
    assert chosen[2].captions == ("ein Vogel",)


def test_an_image_without_a_caption_in_the_languages_is_named(tmp_path):
    pairs = read(tmp_path, ROWS)
    with pytest.raises(UserError, match=r"(?s)1 of 3 .*2\.png.*de 3"):
        choose_captions(pairs, CaptionChoice(languages={"en": None}))
    assert count_languages(pairs) == {"en": 3, "de": 3, "fr": 1}
    zero = read(tmp_path / "zero", [{"text": ["a", "b"], "caption_weights": 0}])
    with pytest.raises(UserError, match=r"0\.png"):
        choose_captions(zero, NO_CHOICE)


@pytest.mark.parametrize("text", ["en,", "en,en", "en=0", "en=x", "en=nan", "en=1,de", "a b", "=1"])
def test_languages_that_cannot_be_read_are_refused(text):
    with pytest.raises(UserError, match=re.escape(text.strip(",").split("=")[-1][-2:])):
        parse_languages(text)


# Reading ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "marks",
    [
        {"caption_weights": [1]},
        {"caption_weights": [1, -1]},
        {"caption_weights": [1, float("inf")]},
        {"caption_weights": [1, 10**400]},
        {"caption_weights": [True, 1]},
        {"caption_weights": "3"},
        {"caption_weights": {"en": 1}},
        {"caption_languages": ["en", "not a language"]},
        {"caption_languages": [1, 2]},
        {"caption_languages": ["en", "de", "fr"]},
    ],
)
def test_marks_that_do_not_fit_the_captions_name_row_and_field(tmp_path, marks):
    rows = [{"text": ["a", "b"]}, {"text": ["a", "b"], **marks}]
    with pytest.raises(UserError, match=rf"metadata.jsonl line 2.*({next(iter(marks))}|Infinity)"):
        read(tmp_path, rows)


def test_every_kind_of_data_gives_the_same_captions_with_their_marks(tmp_path):
    folders = [tmp_path / name for name in ("jsonl", "csv", "shards", "parquet")]
    expected = read(folders[0], ROWS)
    members, columns = {}, {"image": [], "text": [], "caption_weights": [], "caption_languages": []}
    lines = ["file_name,text,caption_weights,caption_languages"]
    for k, row in enumerate(ROWS):
        data = (folders[0] / f"{k}.png").read_bytes()
        weights = row.get("caption_weights", [1] * len(row["text"]))
        members |= {f"{k}.png": data, f"{k}.json": json.dumps(row).encode()}
        values = (data, row["text"], weights, row["caption_languages"])
        for column, value in zip(columns.values(), values, strict=True):
            column.append(value)
        marks = zip(row["text"], weights, row["caption_languages"], strict=True)
        lines += [f"{k}.png,{text},{weight},{language}" for text, weight, language in marks]
        folders[1].mkdir(exist_ok=True)
        (folders[1] / f"{k}.png").write_bytes(data)
    (folders[1] / "metadata.csv").write_text("\n".join(lines))
    write_shard(folders[2] / "0.tar", members)
    write_parquet(folders[3] / "0.parquet", pa.table(columns))
    for data in (folders[1], folders[2] / "0.tar", folders[3] / "0.parquet"):
        for _ in range(2):  # read, then from the index
            pairs = read_folder(data).pairs
            assert (pairs.column("captions_hash") == expected.column("captions_hash")).all(), data
            assert (pairs.table.caption_weights == expected.table.caption_weights).all()
            assert count_languages(pairs) == {"en": 3, "de": 3, "fr": 1}


def test_a_text_counts_once_in_each_language(tmp_path):
    row = {"text": ["robot", "robot", "robot"], "caption_languages": ["en", "fr", "en"]}
    pairs = read(tmp_path, [row])
    assert pairs[0].captions == ("robot", "robot")
    assert choose_captions(pairs, CaptionChoice(languages={"fr": None}))[0].captions == ("robot",)


def test_marks_are_the_same_if_the_table_is_joined_of_parts(tmp_path):
    plain = [{"text": "a"}, {"text": ["b", "c"]}]
    tables = [
        read(tmp_path / str(k), rows).table for k, rows in enumerate((plain, ROWS[::-1], ROWS))
    ]
    joined = JoinedTables([lambda table=table: table for table in tables])
    whole = read(tmp_path / "whole", [*plain, *ROWS[::-1], *ROWS]).table
    for made in (joined.in_memory(), saved(joined, tmp_path / "saved")):
        assert made.languages == whole.languages
        assert (made.caption_languages == whole.caption_languages).all()
        assert (made.caption_weights == whole.caption_weights).all()


def saved(joined: JoinedTables, folder: Path) -> Table:
    """Return the table that a joined one is when it was saved and opened."""
    folder.mkdir()
    joined.save(folder)
    return Table.open(folder, folder)


# The cache ----------------------------------------------------------------------------------------


def test_the_cache_draws_the_texts_that_the_loader_draws(tmp_path):
    rows = [{"text": ["cat, black", "dog"], "caption_weights": [3, 1]}, {"text": "sun, sky, sea"}]
    pairs = choose_captions(
        read(tmp_path / "data", rows), CaptionChoice(languages={}, suffix="end")
    )
    draws = caption_draws(pairs, SHUFFLED, 1)
    assert len(draws.texts) == 17 and draws.texts[16] == "sun, sky, sea end"
    build_cache(tmp_path / "cache", pairs, draws=draws, encode_texts=encode_letters)
    cache = LatentCache.open(tmp_path / "cache", IDENTITY, pairs)
    assert len(cache.context) == 1 + len(set(draws.texts))
    numbers = torch.rand(50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    indices = torch.arange(50) % 2
    rows_drawn = cache.caption_rows[draws.draw(indices, numbers)]
    texts = [draws.texts[k] for k in draws.draw(indices, numbers).tolist()]
    assert torch.equal(cache.context[rows_drawn].float(), encode_letters(texts))


def test_marks_belong_to_the_data_and_plain_captions_have_the_hash_of_before(tmp_path):
    plain = read(tmp_path / "a", [{"text": ["a", "b"]}])
    same = read(tmp_path / "b", [{"text": ["a", "b"], "caption_weights": 1}])
    other = read(tmp_path / "c", [{"text": ["a", "b"], "caption_weights": [1, 2]}])
    hashes = [pairs.column("captions_hash").tobytes() for pairs in (plain, same, other)]
    assert hashes[0] == hashes[1] != hashes[2]
    assert isinstance(caption_draws(plain).texts, ChosenCaptions)
