"""evaluate.py model --language-samples: recall in each language, trained and held out."""

import json
import shutil

import pytest
import torch

import evaluate
from dataset.captions.choice import only_language
from dataset.folder import read_folder
from foundation.errors import UserError
from stages.evaluation.report import HTML_FILE, JSON_FILE

GERMAN = 5  # pictures whose German caption is trained on; that of the others is held out


@pytest.fixture
def data(world, tmp_path):
    """All pictures in English in train/, and in German some in train/ and some in test/."""
    for name in ("train", "test"):
        shutil.copytree(world / "data", tmp_path / "data" / name)
    rows = (world / "data" / "metadata.jsonl").read_text().splitlines()
    splits = {"train": [], "test": []}
    for k, row in enumerate(map(json.loads, rows)):
        english, german = row["text"], f"ein Bild Nummer {k}"
        both = {"text": [english, german], "caption_languages": ["en", "de"]}
        one = {"text": [english], "caption_languages": ["en"]}
        splits["train"].append(row | (both if k < GERMAN else one))
        if k >= GERMAN:
            splits["test"].append(row | {"text": [german], "caption_languages": ["de"]})
    for name, content in splits.items():
        lines = [json.dumps(row) + "\n" for row in content]
        (tmp_path / "data" / name / "metadata.jsonl").write_text("".join(lines))
    for row in splits["train"][:GERMAN]:
        (tmp_path / "data" / "test" / row["file_name"]).unlink()
    return tmp_path / "data"


def test_only_language_leaves_its_captions_alone(data):
    pairs = only_language(read_folder(data / "train").pairs, "de")
    assert len(pairs) == GERMAN
    assert all(pair.captions == (pair.captions[0],) for pair in pairs)
    assert all(pair.captions[0].startswith("ein Bild") for pair in pairs)
    assert len(only_language(read_folder(data / "train").pairs, "fr")) == 0


def words(world, data, out, *more) -> list[str]:
    arguments = ["model", world / "ldm", "--data", data, "--split", "train"]
    arguments += ["--held-out-split", "test", "--held-out", 0, "--samples", 3, "--steps", 1]
    return [str(word) for word in [*arguments, "--device", "cpu", "--out", out, *more]]


def test_recall_of_trained_and_of_held_out_captions(world, data, tmp_path):
    out = tmp_path / "out"
    more = ["--judge", world / "clip", "--language-samples", 4]
    evaluate.main(words(world, data, out, *more))
    rows = json.loads((out / JSON_FILE).read_text())["tables"]["recall by language"]
    german, english = rows
    assert (german["language"], english["language"]) == ("de", "en")
    assert german["captions"] == {"trained": 4, "held out": 4}
    assert english["captions"] == {"trained": 4, "held out": 0}
    assert {"trained", "trained, real images", "held out", "held out, real images"} < german.keys()
    assert "held out" not in english
    assert 0 <= german["held out"]["recall@1"]["value"] <= 1
    assert "Recall by language" in (out / HTML_FILE).read_text()


def test_what_the_table_needs_is_said(world, data, tmp_path):
    with pytest.raises(UserError, match=r"--language-samples 2 .*--judge"):
        features = ["--features", world / "clip", "--language-samples", 2]
        evaluate.main(words(world, data, tmp_path / "out", *features))
    torch.manual_seed(0)
    arguments = ["model", world / "ldm", "--data", world / "data", "--judge", world / "clip"]
    arguments += ["--language-samples", 2, "--device", "cpu", "--out", tmp_path / "out"]
    with pytest.raises(UserError, match="No caption of this data says its language"):
        evaluate.main([str(word) for word in arguments])
    assert not (tmp_path / "out").exists()
