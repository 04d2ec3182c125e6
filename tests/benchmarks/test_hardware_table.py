"""The tables of docs/hardware.md are what benchmarks/hardware_table.py prints."""

from pathlib import Path

import pytest

from benchmarks.hardware_table import CARDS, LIGHT, STAGES, Options, tables
from training.tools.memory_estimate import GPUS

PAGE = Path(__file__).parents[2] / "docs" / "hardware.md"


def lines_of_page() -> list[str]:
    return PAGE.read_text(encoding="utf-8").splitlines()


def assert_on_page(options: Options) -> None:
    printed = [line for line in tables(options) if line]
    missing = [line for line in printed if line not in lines_of_page()]
    assert printed and not missing, "python benchmarks/hardware_table.py prints these"


@pytest.mark.slow
def test_the_page_has_what_the_program_prints_for_a_small_preset():
    assert_on_page(Options(preset=("small-128",), stage=(1,)))


@pytest.mark.slow
def test_the_page_has_all_that_the_program_prints():
    assert_on_page(Options())


def test_the_page_has_a_row_for_every_training_and_a_cell_for_every_gpu():
    rows = [line for line in lines_of_page() if line.startswith(("| stage", "| ... with"))]
    for stage, presets in STAGES.items():
        for preset in presets:
            own = [row for row in rows if row.startswith(f"| stage {stage}, `{preset}`")]
            assert len(own) == (1 if preset in LIGHT else 2), (stage, preset)
    assert sum(row.startswith("| ...") for row in rows) == len(STAGES[2])
    assert list(CARDS) == list(GPUS)
    assert {row.count("|") for row in rows} == {len(GPUS) + 2, len(GPUS) + 4}
