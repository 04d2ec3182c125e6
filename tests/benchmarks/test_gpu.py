"""benchmarks/gpu.py: a part that fails costs only itself, and what it had found is kept."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from benchmarks import gpu
from benchmarks.gpu_parts import demo_recipe
from benchmarks.gpu_parts.demo_recipe import SHARD_BYTES, join_shards, write_shards
from benchmarks.gpu_parts.job import read_records
from benchmarks.gpu_parts.report import read_report, to_markdown
from benchmarks.gpu_parts.small_data import make_squares
from benchmarks.gpu_parts.stopwatch import count_tflop, measure_step
from foundation.errors import UserError
from interop.safetensors_io import read_tensors
from training.cli import run_main


@pytest.fixture
def job(rehearsal):
    return rehearsal(seconds=60)


@pytest.mark.slow
def test_a_part_that_fails_is_recorded_and_the_next_one_runs(tmp_path, monkeypatch):
    parts = (
        gpu.BenchmarkPart("broken", "machine:nothing", 60),
        gpu.BenchmarkPart("limits", "machine:measure", 60),
    )
    monkeypatch.setattr(gpu, "PARTS", parts)
    flags = ["--device", "cpu", "--rehearse", "--minutes", "5"]
    gpu.main([*flags, "--out", str(tmp_path / "out")])
    results = read_report(tmp_path / "out")["parts"]
    assert results["broken"]["status"] == "failed" and "nothing" in results["broken"]["error"]
    assert results["limits"]["status"] == "passed"
    assert results["limits"]["records"]["matmul"]["tflops"] > 0
    assert "| broken | failed |" in (tmp_path / "out" / "gpu.md").read_text()


def test_parts_are_left_out_when_the_time_is_over(tmp_path, capsys):
    gpu.main(["--device", "cpu", "--rehearse", "--minutes", "0.1", "--out", str(tmp_path)])
    parts = read_report(tmp_path)["parts"]
    assert len(parts) == len(gpu.PARTS)
    assert {part["status"] for part in parts.values()} == {"skipped"}


def test_a_cpu_is_refused_without_a_rehearsal(tmp_path, capsys):
    with pytest.raises(SystemExit):
        run_main(lambda: gpu.main(["--device", "cpu", "--out", str(tmp_path / "out")]))
    assert "--rehearse" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_words_that_no_part_has_are_refused(tmp_path):
    with pytest.raises(UserError, match="limits"):
        gpu.main(["--device", "cpu", "--rehearse", "--only", "x", "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(os.name != "posix", reason="ends process groups")
def test_the_processes_of_a_part_end_with_it(tmp_path):
    child = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    process = subprocess.Popen(
        [sys.executable, "-c", parent], stdout=subprocess.PIPE, start_new_session=True
    )
    assert process.stdout is not None
    number = int(process.stdout.readline())
    gpu.end(process)
    assert process.returncode is not None
    deadline = time.time() + 10
    while time.time() < deadline:
        try:
            os.kill(number, 0)
        except ProcessLookupError:
            break
        time.sleep(0.05)
    else:
        state = Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0]
        assert state == "Z"
    process.stdout.close()


def test_results_of_a_part_that_was_killed_are_kept(job):
    job.record("speed", milliseconds=5)
    job.record("speed", batch_size=2)
    with job.records.open("a") as file:
        file.write('{"name": "cut o')
    assert read_records(job.records) == {"speed": {"milliseconds": 5, "batch_size": 2}}


def test_a_smaller_batch_is_tried_and_recorded_when_the_memory_is_full(job):
    def prepare(batch_size):
        if batch_size > 3:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return lambda: None

    assert measure_step(job, "step", prepare, (8, 4, 2), tflop_per_image=1.0) == 2
    found = read_records(job.records)["step"]
    assert found["batch_size"] == 2 and found["too_large"] == [8, 4]
    assert measure_step(job, "none", prepare, (8, 4)) is None
    assert "8, 4" in read_records(job.records)["none"]["error"]


def test_operations_are_counted_without_computing():
    """A product of (m, k) and (k, n) costs 2 m k n, and as much for each gradient."""
    a = torch.empty(3, 5, device="meta", requires_grad=True)
    b = torch.empty(5, 7, device="meta", requires_grad=True)
    assert count_tflop(lambda: (a @ b).sum()) == pytest.approx(3 * 2 * 3 * 5 * 7 / 1e12)


def test_the_table_compares_with_diffusers_as_shipped():
    speed = {"batch_size": 4, "milliseconds": 10.0, "seconds_of_first_step": 1.0}
    records = {
        "matmul": {"side": 8, "tflops": 100.0},
        "net diffusers": speed | {"images_per_second": 10.0},
        "net ours": speed | {"images_per_second": 25.0, "tflops": 45.0, "peak_gigabytes": 3.0},
    }
    text = to_markdown({"parts": {"x": {"status": "passed", "seconds": 1, "records": records}}})
    assert "| net ours | 4 | 10 | 25 | 2.50 | 45 | 45% | 3 | 1 |" in text


def test_the_steps_of_the_demo_model_are_those_that_fit(tmp_path):
    """At 40 images a second, 10 steps of 4: 90 % of the 80 s that are left after a restart."""
    run = tmp_path / "run"
    (run / "state" / "step-0000007").mkdir(parents=True)
    (run / "config.json").write_text(json.dumps({"batch_size": 4}))
    assert demo_recipe.fitting_steps(run, 100) == 7
    speeds = [{"step": 5, "images_per_second": 40.0}, {"step": 6, "psnr": 20.0}]
    (run / "metrics.jsonl").write_text("\n".join(map(json.dumps, speeds)))
    seconds = demo_recipe.RESTART + 80
    assert demo_recipe.fitting_steps(run, seconds) == 7 + int(0.9 * 80 * 10)
    assert demo_recipe.fitting_steps(run, 1) == 7


@pytest.mark.slow
def test_a_stage_of_the_demo_model_ends_with_its_schedule(tmp_path, monkeypatch):
    """Its steps are those of its schedule, although nobody knew them at the beginning."""
    monkeypatch.setattr(demo_recipe, "RESTART", 15.0)
    data, run = make_squares(tmp_path / "data", 96), tmp_path / "vae"
    command = ["train_vae.py", "--preset", "tiny-32", "--data", str(data), "--out", str(run)]
    flags = ["--device", "cpu", "--log-every", "2", "--batch-size", "4"]
    found = demo_recipe.train_for([*command, *flags], run, 100.0)
    assert 2 < found["steps"] <= found["planned"] < demo_recipe.MANY_STEPS
    config = json.loads((run / "config.json").read_text())
    assert config["steps"] == found["steps"]
    assert (run / "model" / "config.json").is_file()


def test_weights_survive_the_small_files(tmp_path):
    from safetensors.torch import save_file

    model, out = tmp_path / "model", tmp_path / "out"
    (model / "unet").mkdir(parents=True)
    out.mkdir()
    size = SHARD_BYTES // 2 // 4 * 3
    tensors = {"a": torch.arange(size) % 7, "b": torch.ones(size), "c": torch.zeros(3)}
    tensors = {name: tensor.half() for name, tensor in tensors.items()}
    save_file(tensors, model / "unet" / "w.safetensors")
    (model / "unet" / "config.json").write_text(json.dumps({"width": 3}))
    files = write_shards(model, out)
    assert len(files) == 2 and all(file.stat().st_size <= 16 * 2**20 for file in files)
    join_shards(files, tmp_path / "again")
    restored = read_tensors(tmp_path / "again" / "unet" / "w.safetensors")
    assert all(torch.equal(restored[name], tensor) for name, tensor in tensors.items())
    assert json.loads((tmp_path / "again/unet/config.json").read_text()) == {"width": 3}
