"""best/: written when a number is the best so far, whole, and not again by a run that goes on."""

from pathlib import Path

import pytest

from foundation.files import read_json
from training.weights.best import FILE, BestModel, Criterion

PSNR = Criterion(metric="psnr", words="held-out PSNR", higher_is_better=True)
LOSS = Criterion(metric="val", words="held-out loss", higher_is_better=False)


def open_best(folder: Path, criterion: Criterion = PSNR) -> tuple[BestModel, list[int]]:
    """Return a best model, and the steps at which it was written."""
    written: list[int] = []

    def write(place: Path, facts: dict) -> None:
        written.append(facts["best"]["step"])
        (place / "weights").write_text(str(facts["best"]["value"]))

    return BestModel(folder, criterion, write), written


def test_only_what_is_better_is_written(tmp_path, capsys):
    best, written = open_best(tmp_path / "best")
    for step, value in enumerate((float("nan"), 20.0, 19.0, 20.0, 21.5, float("nan"))):
        best.offer(step, {"psnr": value, "verdict": "fine"})
    assert written == [1, 4]
    assert read_json(tmp_path / "best" / FILE) == {"metric": "psnr", "value": 21.5, "step": 4}
    assert (tmp_path / "best" / "weights").read_text() == "21.5"
    assert "step 4: held-out PSNR 21.5" in capsys.readouterr().out
    best, written = open_best(tmp_path / "low", LOSS)
    for step, value in enumerate((0.5, 0.6, 0.4)):
        best.offer(step, {"val": value})
    assert written == [0, 2]


def test_a_run_that_goes_on_before_its_best_step_ends_with_the_same(tmp_path):
    values = [20.0, 19.0, 21.0, 20.5]
    best, _ = open_best(tmp_path / "best")
    for step in range(3):
        best.offer(step, {"psnr": values[step]})
    best, written = open_best(tmp_path / "best")  # it goes on from step 0
    for step in range(4):
        best.offer(step, {"psnr": values[step]})
    assert written == [] and best.found is not None and best.found.step == 2


def test_what_another_number_chose_is_replaced(tmp_path):
    open_best(tmp_path / "best")[0].offer(1, {"psnr": 20.0})
    best, written = open_best(tmp_path / "best", LOSS)
    best.offer(2, {"val": 0.9})
    assert written == [2] and read_json(tmp_path / "best" / FILE)["metric"] == "val"


def test_an_error_while_it_is_written_leaves_the_best_before(tmp_path):
    best, _ = open_best(tmp_path / "best")
    best.offer(1, {"psnr": 20.0})

    def fail(place: Path, facts: dict) -> None:
        (place / "weights").write_text("half")
        raise OSError("disk full")

    best.write = fail
    with pytest.raises(OSError, match="disk full"):
        best.offer(2, {"psnr": 30.0})
    assert (tmp_path / "best" / "weights").read_text() == "20.0"
    assert [entry.name for entry in tmp_path.iterdir()] == ["best"]
