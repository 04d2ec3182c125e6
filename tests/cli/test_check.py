"""check.py: its report, and the exit status that says whether a training would go wrong."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import check
from foundation.errors import UserError
from tests.helpers.images import captioned, picture, truncated
from tests.helpers.text_encoders import small_encoder

ROOT = Path(__file__).parents[2]


def run_check(*arguments: str | Path, capsys: pytest.CaptureFixture) -> tuple[int, str]:
    """Return the exit status and the output."""
    status = 0
    try:
        check.main([str(argument) for argument in arguments])
    except SystemExit as stop:
        status = stop.code
    return status, capsys.readouterr().out


def test_a_folder_without_problems(tmp_path, capsys):
    status, text = run_check(captioned(tmp_path, 40), "--size", "16", capsys=capsys)
    assert status == 0
    for line in (
        "images           40",
        "captions         40, 40 of them distinct",
        "caption source   metadata.jsonl",
        "8x8  40  ####",
        "40 are smaller than 16 pixels",
        "0 of 40 are longer than 77 tokens",
        "000.png: picture number 0",
        "039.png: picture number 39",
        "No problems",
    ):
        assert line in text


def test_problems_are_named_and_end_with_status_1(tmp_path, capsys):
    captioned(tmp_path, 3)
    picture(tmp_path / "lonely.png")
    truncated(tmp_path / "cut.jpg")
    status, text = run_check(tmp_path, capsys=capsys)
    assert status == 1
    assert "PROBLEM: 1 images" in text
    assert "lonely.png" in text
    assert "PROBLEM: 1 files" in text
    assert "cut.jpg: " in text
    assert "3 images to train on (1 of 4 held out) are fewer than one batch of 32" in text
    assert "train with --batch-size 3 or smaller" in text


def test_messages_name_its_flags(tmp_path):
    for split in ("train", "test"):
        captioned(tmp_path / split, 2)
    command = [sys.executable, ROOT / "check.py", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert "--split train, --split test" in done.stderr


def test_missing_captions_can_be_allowed(tmp_path, capsys):
    for k in range(4):
        picture(tmp_path / f"{k}.png")
    options = (tmp_path, "--batch-size", "3", "--allow-missing-captions")
    status, text = run_check(*options, capsys=capsys)
    assert status == 0
    assert "without caption  4" in text and "caption source   none found" in text
    assert run_check(*options[:-1], capsys=capsys)[0] == 1


def test_captions_that_will_be_cut_are_counted(tmp_path, capsys):
    """CLIP has a token for each of these words, and adds a start and an end mark."""
    for k, words in enumerate((5, 6, 7)):
        picture(tmp_path / f"{k}.png")
        (tmp_path / f"{k}.txt").write_text(" ".join(["cat"] * words))
    status, text = run_check(tmp_path, "--context-length", "8", "--batch-size", "1", capsys=capsys)
    assert "1 of 3 are longer than 8 tokens" in text
    assert status == 0


def test_a_missing_folder_is_reported_in_one_line_with_status_2(tmp_path):
    done = subprocess.run(
        [sys.executable, str(ROOT / "check.py"), str(tmp_path / "nowhere")],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert "nowhere" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_file_that_looks_like_captions_is_named(tmp_path):
    picture(tmp_path / "a.png")
    (tmp_path / "metadata.json").write_text(json.dumps({"a.png": "an apple"}))
    with pytest.raises(UserError, match=r"metadata\.json.*metadata\.jsonl"):
        check.main([str(tmp_path)])


def test_advice_names_flags(tmp_path, capsys):
    for k in range(2):
        picture(tmp_path / f"{k}.png", size=(16, 8))
        (tmp_path / f"{k}.txt").write_text(f"picture {k}")
    _, text = run_check(tmp_path, capsys=capsys)
    assert "--max-aspect 2" in text
    assert "--batch-size 1" in text


def test_a_planned_range_is_checked(tmp_path, capsys):
    values = np.full((8, 8), 90, np.float32)
    np.save(tmp_path / "a.npy", values)
    options = (tmp_path, "--batch-size", "1", "--allow-missing-captions")
    status, text = run_check(*options, capsys=capsys)
    assert status == 1 and "--value-range LOW HIGH" in text
    status, text = run_check(*options, "--value-range", "0", "100", capsys=capsys)
    assert status == 0 and "1 files: 1 channels of float32" in text


def check_json(*arguments: str | Path, capsys: pytest.CaptureFixture) -> dict:
    _, text = run_check(*arguments, "--json", capsys=capsys)
    return json.loads(text)


def test_the_whole_report_as_json(tmp_path, capsys):
    captioned(tmp_path / "data", 40)
    truncated(tmp_path / "data" / "cut.jpg")
    facts = check_json(tmp_path / "data", "--sheet", tmp_path / "sheet.png", capsys=capsys)
    assert facts["images"] == facts["captions"]["captions"] == 40
    assert facts["files"]["used"] + len(facts["files"]["duplicates"]) == 40
    assert not facts["ready"] and len(facts["problems"]) == 1
    assert facts["unusable"][0]["path"].endswith("cut.jpg")
    assert (tmp_path / "sheet.png").is_file()
    assert facts["kinds"] == {"RGB": 40}
    first, middle, last = facts["samples"]
    assert first["path"].endswith("000.png") and last["path"].endswith("039.png")
    _, text = run_check(tmp_path / "data", capsys=capsys)
    assert "40 RGB" in text
    for sample in (first, middle, last):
        assert f"{sample['path']}: {' | '.join(sample['captions'])}" in text


def test_a_folder_without_captions_has_no_samples(tmp_path, capsys):
    Image.new("L", (40, 40)).save(tmp_path / "IMG_2034.png")
    facts = check_json(tmp_path, "--allow-missing-captions", capsys=capsys)
    assert facts["samples"] == [] and facts["kinds"] == {"gray": 1}


def test_a_preset_judges_captions_and_epochs(tmp_path, capsys):
    for k in range(60):
        picture(tmp_path / f"{k:02}.png", size=(70, 70))
        (tmp_path / f"{k:02}.txt").write_text("cat " * 40 + str(k))
    status, text = run_check(tmp_path, capsys=capsys)  # CLIP reads 77 tokens
    assert status == 0 and "--preset small-64" in text and "ready" not in text
    status, text = run_check(tmp_path, "--preset", "small-64", capsys=capsys)
    assert status == 1 and "ready" not in text
    assert "PROBLEM: all 60 captions" in text and "5,424" in text
    facts = check_json(tmp_path, "--preset", "small-64", "--context-length", "77", capsys=capsys)
    assert facts["remarks"] and not facts["ready"]
    assert len(facts["problems"]) == 1 and "256 of train_clip.py" in facts["problems"][0]
    assert facts["planned_size"] == 64 and facts["size_loss"]["enlarged"] == 0
    with pytest.raises(UserError, match="small-64"):
        check.main([str(tmp_path), "--preset", "smal-64"])


def test_captions_are_counted_by_the_tokenizer_of_a_text_encoder(tmp_path, capsys):
    folder, encoder = tmp_path / "encoder", small_encoder(max_position_embeddings=20)
    encoder.save(folder)
    for k in range(2):
        picture(tmp_path / "data" / f"{k}.png")
        (tmp_path / "data" / f"{k}.txt").write_text(f"picture {k}")
    facts = check_json(tmp_path / "data", "--text-encoder", folder, capsys=capsys)
    assert facts["captions"]["room"] == encoder.tokens == 20
    with pytest.raises(UserError, match="nowhere"):
        check.main([str(tmp_path / "data"), "--text-encoder", "nowhere"])


def test_a_folder_without_captions_gets_ways_out(tmp_path, capsys):
    for k in range(4):
        picture(tmp_path / f"{k}.png")
    status, text = run_check(tmp_path, "--batch-size", "2", capsys=capsys)
    assert status == 1
    for way in (".txt", "metadata.jsonl", "recipes/caption.py", "--allow-missing-captions"):
        assert way in text


def test_splits_are_chosen(tmp_path, capsys):
    for part in ("train", "test"):
        captioned(tmp_path / part, 2)
    facts = check_json(tmp_path, "--split", "test", capsys=capsys)
    assert facts["images"] == 2 and facts["files"]["not_read"][".png"]["count"] == 2
    with pytest.raises(UserError, match="split='train'"):
        check.main([str(tmp_path)])
