"""check.py: its report, and the exit status that says whether a training would go wrong."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import check
from foundation.errors import UserError
from tests.helpers.images import captioned, picture, truncated

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
    assert "PROBLEM: 4 images are fewer than one batch of 32; train with --batch-size 4" in text


def test_missing_captions_can_be_allowed(tmp_path, capsys):
    for k in range(4):
        picture(tmp_path / f"{k}.png")
    options = (tmp_path, "--batch-size", "4", "--allow-missing-captions")
    status, text = run_check(*options, capsys=capsys)
    assert status == 0
    assert "without caption  4" in text
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
    assert "--batch-size 2" in text


def test_a_planned_range_is_checked(tmp_path, capsys):
    values = np.full((8, 8), 90, np.float32)
    np.save(tmp_path / "a.npy", values)
    options = (tmp_path, "--batch-size", "1", "--allow-missing-captions")
    status, text = run_check(*options, capsys=capsys)
    assert status == 1 and "--value-range LOW HIGH" in text
    status, text = run_check(*options, "--value-range", "0", "100", capsys=capsys)
    assert status == 0 and "1 files: 1 channels of float32" in text
