"""Metrics: running means, and the lines of metrics.jsonl."""

import json
import math

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from training.logging.metrics import MetricsFile, RunningMeans, read_metrics
from training.run import Run


def test_means_are_of_finite_values():
    means_before = RunningMeans()
    means_before.add({"a": torch.tensor(1.0)})
    means_before.add({"a": torch.tensor(math.inf), "b": torch.tensor(3.0)})
    means_before.add({"a": torch.tensor(2.0), "c": torch.tensor(math.nan)})
    again = RunningMeans()
    again.load_state_dict(means_before.state_dict())
    means = again.pop()
    assert (means["a"], means["b"]) == (1.5, 3.0) and math.isnan(means["c"])
    assert again.pop() == {}


def test_later_lines_are_removed_on_resuming(tmp_path):
    Run(tmp_path, {})
    file = MetricsFile(tmp_path, 0)
    file.write(2, {"psnr": 1.0, "verdict": "dead"})
    file.write(4, {"psnr": float("nan"), "verdict": "balanced"})
    kept = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[1])
    assert kept == {"step": 4, "psnr": None, "verdict": "balanced"}
    MetricsFile(tmp_path, 2)
    assert "balanced" not in (tmp_path / "metrics.jsonl").read_text()


def test_resuming_a_run_with_old_metric_names_says_so_once(tmp_path, capsys):
    Run(tmp_path, {})
    line = json.dumps({"step": 1, "share_of_nothing": 0.9}) + "\n"
    (tmp_path / "metrics.jsonl").write_text(line + line)
    MetricsFile(tmp_path, 1).write(2, {"val_loss_relative": 0.8})
    (note,) = capsys.readouterr().out.splitlines()
    assert "share_of_nothing" in note and "val_loss_relative" in note
    lines = read_metrics(tmp_path / "metrics.jsonl")
    assert [line["val_loss_relative"] for line in lines] == [0.9, 0.9, 0.8]
    assert (tmp_path / "metrics.jsonl").read_text().startswith(line), "old lines stay as they are"


def test_a_line_that_was_cut_short_ends_the_metrics(tmp_path):
    file = tmp_path / "metrics.jsonl"
    assert read_metrics(file) == []
    file.write_text('{"step": 1, "loss": 0.5}\n{"step": 2, "lo')
    assert read_metrics(file) == [{"step": 1, "loss": 0.5}]


def test_means_need_no_float64_on_a_device_that_has_none():
    """MPS, of which PyTorch's fake tensors tell types and shapes on any machine."""
    with FakeTensorMode():
        means = RunningMeans()
        for step in range(2):
            value = torch.ones((), device="mps")
            means.add({"loss": value, f"other-{step}": value})
            assert means.totals.dtype == torch.float32
