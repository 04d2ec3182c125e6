"""The recipe of the demo model, for as long as the time lasts, and its weights in small files."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from benchmarks.gpu_parts.job import ROOT, Job
from benchmarks.gpu_parts.small_data import make_squares

SHARD_BYTES, MOST_SHARDS = 15 * 2**20, 4
# Of the time that is left when a stage begins; what a stage does not use goes to the next ones.
SHARES = {"clip": 0.2, "vae": 0.4, "ldm": 0.8}
END = 25.0  # seconds to draw pictures and to write the weights


def train(job: Job) -> None:
    """Train the three stages, draw a sheet of pictures, and copy the weights to `out`."""
    preset = "tiny-32" if job.rehearse else "demo"
    data = Path(job.data) if job.data else make_squares(job.files / "data", 96)
    job.record("demo", preset=preset, data="given" if job.data else "colored squares")
    flags: list[str] = []
    if job.rehearse:
        flags = ["--steps", "6", "--evaluate-every", "6", "--save-every", "2", "--batch-size", "8"]
    runs = {name: job.files / name for name in SHARES}
    inputs = ["--vae", str(runs["vae"]), "--text-encoder", str(runs["clip"])]
    for name, share in SHARES.items():
        command = [f"train_{name}.py", "--preset", preset, "--data", str(data)]
        command += ["--out", str(runs[name]), "--device", job.device, *flags]
        command += inputs if name == "ldm" else []
        seconds = max(5.0, share * (job.left() - END))
        job.record(f"demo {name}", **train_for(job, command, runs[name], seconds))
    with job.guarded("demo pictures"):
        draw(job, runs["ldm"])
    with job.guarded("demo weights"):
        files = write_shards(runs["ldm"] / "model", Path(job.out))
        job.record("demo weights", files=[file.name for file in files])


def train_for(job: Job, command: list[str], run: Path, seconds: float) -> dict[str, Any]:
    """Run a training; when the seconds are over, stop it and end the run where it is.

    A stopped run has saved its state. The same command with `--override steps=N` then finds
    nothing left to train, and writes the model.
    """
    started = time.time()
    process = subprocess.Popen([sys.executable, *command], cwd=ROOT)
    stopped = False
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        stopped = True
        process.send_signal(signal.SIGINT)
        process.wait(max(1.0, job.left()))
    steps = last_step(run)
    if stopped and not (run / "model").is_dir():
        if not steps:
            raise RuntimeError(f"{command[0]} did no step in {seconds:.0f} seconds")
        changed = ["--override", f"steps={steps}"]
        subprocess.run([sys.executable, *command, *changed], cwd=ROOT, check=True)
    elif not stopped and process.returncode:
        raise RuntimeError(f"{command[0]} ended with status {process.returncode}")
    return {"steps": steps, "stopped": stopped, "seconds": time.time() - started}


def last_step(run: Path) -> int:
    """Return the number of steps in the newest state."""
    names = [path.name.removeprefix("step-") for path in (run / "state").glob("step-*")]
    return max((int(name) for name in names if name.isdigit()), default=0)


def draw(job: Job, run: Path) -> None:
    """Draw the prompts of the documentation on one sheet."""
    folder = job.files / "pictures"
    command = [sys.executable, "sample.py", "--model", str(run), "--out", str(folder)]
    command += ["--device", job.device, "--grid"]
    command += ["red square"] if job.rehearse else ["--prompts", "docs/demo-prompts.txt"]
    subprocess.run(command, cwd=ROOT, check=True, timeout=max(5.0, job.left() - 10))
    sheets = sorted(folder.glob("*grid*.png")) or sorted(folder.glob("*.png"))
    os.replace(sheets[0], Path(job.out) / "demo.png")


def write_shards(model: Path, out: Path) -> list[Path]:
    """Write the weights of a model folder in float16, in a few files of at most 15 MiB each.

    Keys are PART/NAME, such as unet/conv_in.weight. The first file has the JSON files of the model
    in its metadata, so `join_shards` can restore the folder.
    """
    tensors = {}
    for file in sorted(model.rglob("*.safetensors")):
        for name, tensor in load_file(file).items():
            half = tensor.half() if tensor.is_floating_point() else tensor
            tensors[f"{file.relative_to(model).as_posix()}/{name}"] = half
    shards: list[dict[str, torch.Tensor]] = [{}]
    filled = 0
    for name, tensor in tensors.items():
        if filled and filled + tensor.nbytes > SHARD_BYTES:
            shards.append({})
            filled = 0
        shards[-1][name] = tensor
        filled += tensor.nbytes
    if len(shards) > MOST_SHARDS:
        raise ValueError(f"the weights need {len(shards)} files; {MOST_SHARDS} are allowed")
    texts = {
        file.relative_to(model).as_posix(): file.read_text(encoding="utf-8")
        for file in sorted(model.rglob("*.json"))
        if file.stat().st_size < 2**16
    }
    files = []
    for number, shard in enumerate(shards, 1):
        file = out / f"demo-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file(shard, file, {"files": json.dumps(texts)} if number == 1 else None)
        files.append(file)
    return files


def join_shards(files: list[Path], model: Path) -> None:
    """Restore a model folder from the files of `write_shards`; tokenizer files are not in them."""
    parts: dict[str, dict[str, torch.Tensor]] = {}
    for file in files:
        with safe_open(file, framework="pt") as opened:
            texts = json.loads((opened.metadata() or {}).get("files", "{}"))
        for name, text in texts.items():
            (model / name).parent.mkdir(parents=True, exist_ok=True)
            (model / name).write_text(text, encoding="utf-8")
        for key, tensor in load_file(file).items():
            path, _, name = key.partition(".safetensors/")
            parts.setdefault(f"{path}.safetensors", {})[name] = tensor
    for path, tensors in parts.items():
        (model / path).parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, model / path)
