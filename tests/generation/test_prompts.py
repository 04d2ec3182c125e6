"""Prompt files: lines with options of their own, errors with their line, and notes on prompts."""

import json
from contextlib import suppress
from dataclasses import fields
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import sample
from foundation.errors import UserError
from generation.limits import MAX_SEED
from generation.metadata import make_record, read_record
from generation.options import GenerationOptions
from generation.prompts import PromptEntry, PromptFile, entry_from, expand, parse_line, prompt_notes
from ldm import TextToImage
from tests.helpers.bad_calls import command
from tests.helpers.random_models import make_pipeline

BROKEN = {  # line -> what the message contains
    '{"prompt": "red"': "JSON",
    '["red"]': "object",
    '{"prompt": 3}': "object",
    '{"prompt": "red", "step": 3}': "Did you mean 'steps'",
    '{"prompt": "red", "steps": "many"}': 'steps is "many"',
    '{"prompt": "red", "steps": 0}': "1 to 1000",
    '{"prompt": "red", "steps": true}': "steps is true",
    '{"prompt": "red", "steps": NaN}': "steps is NaN",
    '{"prompt": "red", "plain_prompts": 1}': "plain_prompts is 1",
    '{"prompt": "red", "mask": ["m.png"]}': 'mask is ["m.png"]',
    '{"prompt": "red", "times": 500}': "times is 500",
    '{"prompt": "red", "strength": 2, "init_image": "x.png"}': "--strength is 2.0",
    '{"prompt": "red", "outpaint": [1, 2]}': "outpaint is [1, 2] (a list); it must be a list of 4",
    '{"prompt": "red", "outpaint": {"0": 1}}': 'outpaint is {"0": 1}',
    '{"prompt": "red", "sampler": "magic"}': "magic",
    '{"prompt": "red", "seed": "5-1"}': "--seed 5-1",
    '{"prompt": "red", "mask": "m.png"}': "--mask",
}


def write(folder: Path, name: str, text: str) -> Path:
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


def test_lines_have_options_of_their_own(world, tmp_path):
    lines = [
        {"prompt": "red", "steps": 2, "seed": 40, "count": 2},
        {"prompt": "green"},
        {"prompt": "blue", "seed": "5,9", "guidance_scale": 1, "height": 40, "spacing": "linspace"},
    ]
    file = write(tmp_path, "p.jsonl", "\n\n".join(json.dumps(line) for line in lines) + "\n")
    arguments = command(sample, world, tmp_path / "out", "--prompts", file, "--seed", 3)
    arguments.remove("red")
    sample.main(arguments)
    records = [read_record(path) for path in sorted((tmp_path / "out").glob("0*.png"))]
    named = ("prompt", "seed", "steps", "guidance_scale", "height", "spacing")
    assert [tuple(record.get(name) for name in named) for record in records] == [
        ("red", 40, 2, 4.0, None, None),
        ("red", 41, 2, 4.0, None, None),
        ("green", 5, 1, 4.0, None, None),  # the third image of the call
        ("blue", 5, 1, 1.0, 40, "linspace"),
        ("blue", 9, 1, 1.0, 40, "linspace"),
    ]


@pytest.mark.parametrize("line", BROKEN)
def test_a_broken_line_is_named(tmp_path, line):
    file = write(tmp_path, "p.jsonl", '{"prompt": "good"}\n\n' + line + "\n")
    with pytest.raises(UserError) as refused:
        list(PromptFile(file, GenerationOptions()))
    assert str(refused.value).startswith(f"{file}, line 3: ")
    assert BROKEN[line] in str(refused.value)


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_other_line_is_an_error_of_the_user(line):
    """Nothing that a line may hold ends as a bug; a valid line is an object."""
    with suppress(UserError):
        assert isinstance(parse_line(line), dict)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=6,
)


@given(st.sampled_from([field.name for field in fields(GenerationOptions)]), JSON)
def test_any_other_value_is_an_error_of_the_user(name, value):
    with suppress(UserError):
        entry_from({"prompt": "red", name: value}, GenerationOptions())


def test_lines_of_a_text_file_are_prompts(tmp_path):
    file = write(tmp_path, "p.txt", "\ufeff{red} [1]\r\n\r\n  blue ")
    entries = list(PromptFile(file, GenerationOptions()))
    assert [entry.prompt for entry in entries] == ["{red} [1]", "blue"]
    assert [entry.location for entry in entries] == [f"{file}, line 1", f"{file}, line 3"]


def test_files_that_are_empty_or_not_text_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"empty\.txt"):
        list(PromptFile(write(tmp_path, "empty.txt", " \n\n"), GenerationOptions()))
    (tmp_path / "latin.txt").write_bytes("red\ncafé".encode("latin-1"))
    with pytest.raises(UserError, match="line 2"):
        list(PromptFile(tmp_path / "latin.txt", GenerationOptions()))
    with pytest.raises(UserError, match=r"nowhere\.txt"):
        list(PromptFile(tmp_path / "nowhere.txt", GenerationOptions()))


def test_the_record_of_an_image_is_a_line_for_it(tmp_path):
    mask, start = (write(tmp_path, name, name) for name in ("mask.png", "start.png"))
    for options in (
        GenerationOptions(height=64, guidance_interval=(0.1, 0.9), init_image=start, mask=mask),
        GenerationOptions(times=(999.0, 3.5), plain_prompts=True, negative_prompt="blue"),
    ):
        (image,) = expand([entry_from({"prompt": "red", "seed": 3}, options)])
        record = json.loads(json.dumps(make_record(image, tmp_path, False, "fp32", {})))
        assert {record.get(name) for name in ("init_image", "mask")} <= {
            "start.png",
            "mask.png",
            None,
        }
        for name in ("model", "hashes", "files"):
            record.pop(name, None)
        for name, file in options.input_files().items():  # a record has only the last part
            record[name] = str(file)
        (again,) = expand([entry_from(record, GenerationOptions())])
        assert again == image


@pytest.mark.parametrize("name", ["p.jsonl", "p.JSONL", "p.Ndjson"])
def test_json_lines_are_known_by_the_ending(tmp_path, name):
    file = write(tmp_path, name, '{"prompt": "red", "seed": 5}\n')
    (entry,) = PromptFile(file, GenerationOptions())
    assert (entry.prompt, entry.options.seed) == ("red", "5")


@pytest.mark.parametrize("name", ["p.json", "p.JSON", "p.txt", "p"])
def test_json_under_another_name_is_not_drawn_as_text(tmp_path, name):
    file = write(tmp_path, name, '{"prompt": "red", "seed": 5}\n')
    with pytest.raises(UserError, match=r"\.jsonl"):
        list(PromptFile(file, GenerationOptions()))


def test_a_prompt_file_is_read_a_line_at_a_time(tmp_path):
    """So the memory does not grow with the file, and the end may be read after the beginning."""
    file = write(tmp_path, "p.txt", "first\n" * 3 + "x" * 300_000)
    entries = iter(PromptFile(file, GenerationOptions()))
    assert [next(entries).prompt for _ in range(3)] == ["first"] * 3
    with pytest.raises(UserError, match=r"line 4.*200,000"):
        next(entries)


def test_options_of_equal_lines_are_checked_once_and_never_mixed_up(tmp_path):
    lines = [{"prompt": str(k), "steps": k % 3 + 1, "seed": k} for k in range(12)]
    file = write(tmp_path, "p.jsonl", "\n".join(map(json.dumps, lines)))
    entries = list(PromptFile(file, GenerationOptions(sampler="ddim")))
    found = [(e.prompt, e.options.steps, e.options.seed, e.options.sampler) for e in entries]
    assert found == [(str(k), k % 3 + 1, str(k), "ddim") for k in range(12)]


@pytest.mark.parametrize(
    ("prompt", "part"), [("x" * 20_000, "20,000"), ("a\ud800b", "ud800"), ("a\udcffb", "udcff")]
)
def test_a_prompt_that_is_no_prompt_is_refused(tmp_path, prompt, part):
    file = write(tmp_path, "p.jsonl", json.dumps({"prompt": prompt}))
    with pytest.raises(UserError, match=part) as refused:
        list(PromptFile(file, GenerationOptions()))
    assert str(refused.value).startswith(f"{file}, line 1: ") and len(str(refused.value)) < 600


def entry(options: GenerationOptions) -> PromptEntry:
    return PromptEntry("red", options, location="p.jsonl, line 7")


def test_seeds_beyond_the_last_are_known_before_anything_is_drawn():
    (image,) = expand([entry(GenerationOptions(seed=str(MAX_SEED)))])
    assert image.seed == MAX_SEED
    with pytest.raises(UserError, match=rf"line 7: .*{MAX_SEED + 1}"):
        list(expand([entry(GenerationOptions(seed=str(MAX_SEED), count=2))]))
    with pytest.raises(UserError, match=str(MAX_SEED + 1)):
        list(expand([entry(GenerationOptions(seed=str(MAX_SEED)))] * 2))


def test_the_number_of_images_is_bounded(monkeypatch):
    monkeypatch.setattr("generation.prompts.MAX_IMAGES", 25)
    with pytest.raises(UserError, match=r"line 7: .*25"):
        list(expand([entry(GenerationOptions(count=10))] * 3))


# Notes.


@pytest.fixture(scope="module")
def pipeline() -> TextToImage:
    return make_pipeline()


def test_notes_say_how_weights_are_read(pipeline):
    assert prompt_notes(pipeline, "a cat", prompt_weights=True) == []
    assert prompt_notes(pipeline, "a (cat)", prompt_weights=False) == []
    (note,) = prompt_notes(pipeline, "a (cat:1.3) AND dog", prompt_weights=True)
    assert "'a', 'cat' (weight 1.3) [share 0.5] AND 'dog' [share 0.5]" in note
    assert "--plain-prompts" in note


def test_notes_say_which_words_are_ignored(pipeline):
    long = " ".join(["one two three four five"] * 6)
    (note,) = prompt_notes(pipeline, long, prompt_weights=True)
    assert "24 tokens" in note and "32" in note
    assert note.endswith(repr(" ".join(long.split()[22:])))
