"""The report on a data folder, and the exit status that says whether to train on it."""

import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

import check
from dataset.folder import read_folder
from dataset.report import histogram, report
from tests.helpers.images import captioned, picture, truncated

ROOT = Path(__file__).parents[2]


def run_check(*arguments: str | Path, capsys: pytest.CaptureFixture) -> tuple[int, str]:
    """(exit status, what was printed)"""
    status = 0
    try:
        check.main([str(argument) for argument in arguments])
    except SystemExit as stop:
        status = stop.code
    return status, capsys.readouterr().out


def test_a_good_folder(tmp_path, capsys):
    status, text = run_check(captioned(tmp_path, 40), "--size", "16", capsys=capsys)
    assert status == 0
    for line in (
        "images          40",
        "captions        40, 40 of them distinct",
        "they come from  metadata.jsonl",
        "8x8  40  ####",
        "40 are smaller than 16 pixels",
        "0 of 40 are longer than 77 tokens",
        "000.png: picture number 0",
        "039.png: picture number 39",
        "No problems found",
    ):
        assert line in text


def test_problems_are_named_and_end_with_status_1(tmp_path, capsys):
    captioned(tmp_path, 3)
    picture(tmp_path / "lonely.png")
    truncated(tmp_path / "cut.jpg")
    status, text = run_check(tmp_path, capsys=capsys)
    assert status == 1
    assert "PROBLEM: 1 images have no caption:" in text
    assert "lonely.png" in text
    assert "PROBLEM: 1 files cannot be used" in text
    assert "cut.jpg: cannot be read: image file is truncated" in text
    assert "PROBLEM: 4 images are fewer than one batch of 32" in text


def test_missing_captions_may_be_meant(tmp_path, capsys):
    for k in range(4):
        picture(tmp_path / f"{k}.png")
    options = (tmp_path, "--batch-size", "4", "--allow-missing-captions")
    status, text = run_check(*options, capsys=capsys)
    assert status == 0
    assert "without         4" in text
    assert run_check(*options[:-1], capsys=capsys)[0] == 1


def test_captions_that_will_be_cut_are_counted(tmp_path, capsys):
    """CLIP's tokens of these words are the words themselves, between start and end mark."""
    for k, words in enumerate((5, 6, 7)):
        picture(tmp_path / f"{k}.png")
        (tmp_path / f"{k}.txt").write_text(" ".join(["cat"] * words))
    status, text = run_check(tmp_path, "--context-length", "8", "--batch-size", "1", capsys=capsys)
    assert "1 of 3 are longer than 8 tokens" in text
    assert status == 0


def test_without_a_tokenizer_words_are_counted(tmp_path):
    assert "in words" in report(read_folder(captioned(tmp_path, 2)))


def test_equal_captions_and_lost_pixels_are_told(tmp_path):
    for k in range(2):
        picture(tmp_path / f"{k}.png", size=(16, 8))
        (tmp_path / f"{k}.txt").write_text("the same")
    text = report(read_folder(tmp_path))
    assert "all captions are the same" in text
    assert "cuts off 50% of the pixels on average; with --max-aspect 2 it is 0%" in text


def test_many_sizes_become_a_histogram(tmp_path):
    for k in range(20):
        picture(tmp_path / f"{k}.png", size=(10 + 5 * k, 10 + 5 * k))
        (tmp_path / f"{k}.txt").write_text("noise")
    text = report(read_folder(tmp_path))
    assert "Shorter side" in text
    assert "  0-19  2  " in text


@pytest.mark.parametrize("values", [[5], [0, 1], list(range(1000)), [1, 1, 900], [7, 7, 8]])
def test_a_histogram_counts_everything_in_a_few_ranges(values):
    rows = histogram(values)
    assert sum(count for _, count in rows) == len(values)
    assert len(rows) <= 8
    bounds = [[int(bound) for bound in name.split("-")] for name, _ in rows]
    assert bounds[0][0] <= min(values)
    assert bounds[-1][-1] >= max(values)
    for (*_, last), (first, *_) in pairwise(bounds):
        assert first == last + 1


def test_a_missing_folder_is_one_line_and_status_2(tmp_path):
    done = subprocess.run(
        [sys.executable, str(ROOT / "check.py"), str(tmp_path / "nowhere")],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: there is no data folder")
    assert done.stderr.count("\n") == 1


def test_near_misses_are_reported(tmp_path, capsys):
    picture(tmp_path / "a.png")
    (tmp_path / "metadata.json").write_text(json.dumps({"a.png": "an apple"}))
    with pytest.raises(ValueError, match=r"did you mean metadata\.jsonl"):
        check.main([str(tmp_path)])
