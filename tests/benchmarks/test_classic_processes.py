"""The table of the classic processes, from the reports of their evaluations."""

import pytest

from benchmarks.papers.classic_processes import NOT_YET, ROWS, markdown_table
from evaluation.estimates import Estimate
from foundation.errors import UserError
from foundation.files import write_json
from stages.evaluation.report import JSON_FILE, Report


def write(folder, accuracy: float, images: str = "a") -> None:
    metrics = {
        "class_accuracy": Estimate(accuracy, 0.5, 0.75),
        "classifier.pt/frechet": Estimate(12.345),
    }
    protocol = {"images": {"images": 4, "sha256": images}}
    report = Report("model", "runs/linear", protocol, {}, {}, metrics)
    folder.mkdir(parents=True)
    write_json(folder / JSON_FILE, report.to_json())


def test_a_row_for_each_process_with_what_is_measured(tmp_path):
    write(tmp_path / "ddpm", 0.625)
    write(tmp_path / "ddim", 0.5625)
    lines = markdown_table(tmp_path)
    assert len(lines) == 2 + len(ROWS)
    assert lines[2].startswith("| DDPM | Ho et al. 2020 | 1000 | 0.625 (0.5 to 0.75) | 12.3 | - |")
    assert sum(NOT_YET in line for line in lines) == len(ROWS) - 2


def test_reports_that_cannot_be_compared_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"none of the folders ddpm, .* docs/processes\.md"):
        markdown_table(tmp_path)
    write(tmp_path / "ddpm", 0.625)
    write(tmp_path / "ddim", 0.5, images="b")
    with pytest.raises(UserError, match="ddpm and ddim are of different images"):
        markdown_table(tmp_path)
