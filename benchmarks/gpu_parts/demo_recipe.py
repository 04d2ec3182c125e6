"""The recipe of the demo model, for as long as the time lasts, and its weights in small files.

A training begins with more steps than it can do. After a part of its time it is stopped, and goes
on with as many steps as fit into the rest at its speed, so that the learning rate falls as it
should.
"""

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
from training.logging.metrics import read_metrics

SHARD_BYTES, MOST_SHARDS = 15 * 2**20, 4
# Of the time that is left when a stage begins; what a stage does not use goes to the next ones.
SHARES = {"clip": 0.2, "vae": 0.4, "ldm": 0.8}
END = 25.0  # seconds to draw pictures and to write the weights
MANY_STEPS = 10**6
TRIED = 0.3  # of the time of a stage, after which its steps are chosen
MARGIN = 0.9  # of the time that is left is planned
RESTART = 25.0  # seconds to start again, and to evaluate and write the model at the end
# What the captions of recipes/emoji.py in 14 languages need, and 8 channels at an f of 8.
FLAGS = {"small-128": {"clip": ["--context-length", "64"], "vae": ["--latent-channels", "8"]}}


def train(job: Job) -> None:
    """Train the three stages, draw a sheet of pictures, and copy the weights to `out`."""
    preset = "tiny-32" if job.rehearse else job.demo_preset
    data = Path(job.data) if job.data else make_squares(job.files / "data", 96)
    job.record("demo", preset=preset, data="given" if job.data else "colored squares")
    flags: list[str] = ["--save-every", "2", "--batch-size", "8"] if job.rehearse else []
    runs = {name: job.files / name for name in SHARES}
    inputs = ["--vae", str(runs["vae"]), "--text-encoder", str(runs["clip"])]
    for name, share in SHARES.items():
        command = [f"train_{name}.py", "--preset", preset, "--data", str(data)]
        command += ["--out", str(runs[name]), "--device", job.device, *flags]
        command += FLAGS.get(preset, {}).get(name, [])
        command += inputs if name == "ldm" else []
        seconds = max(5.0, share * (job.left() - END))
        steps = 6 if job.rehearse else None
        job.record(f"demo {name}", **train_for(command, runs[name], seconds, steps))
    with job.guarded("demo pictures"):
        draw(job, runs["ldm"])
    with job.guarded("demo weights"):
        files = write_shards(runs["ldm"] / "model", Path(job.out))
        job.record("demo weights", files=[file.name for file in files])


def train_for(
    command: list[str], run: Path, seconds: float, steps: int | None = None
) -> dict[str, Any]:
    """Train as many steps as fit into the time, and write the model.

    Args:
        steps: these, and not as many as fit.

    Raises:
        RuntimeError: the training failed, or did no step in the time.
    """
    started = time.time()
    begun = [*command, "--steps", str(steps or MANY_STEPS)]
    changed: list[str] = []
    if steps is None:
        run_for(begun, TRIED * seconds)
        steps = fitting_steps(run, seconds - (time.time() - started))
        changed = ["--override", f"steps={steps}"]
    if not run_for([*begun, *changed], max(1.0, seconds - (time.time() - started))):
        done = last_step(run)
        if not done:
            raise RuntimeError(f"{command[0]} did no step in {seconds:.0f} seconds")
        # The run ends where it is: nothing is left to train, and the model is written.
        run_for([*begun, "--override", f"steps={done}"], None)
    return {"steps": last_step(run), "planned": steps, "seconds": time.time() - started}


def run_for(command: list[str], seconds: float | None) -> bool:
    """Run a training until it ends, or stop it in time, its state saved.

    Returns:
        Whether it ended by itself.

    Raises:
        RuntimeError: it ended with another status.
    """
    process = subprocess.Popen([sys.executable, *command], cwd=ROOT)
    try:
        status = process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
        process.wait()
        return False
    if status:
        raise RuntimeError(f"{command[0]} ended with status {status}")
    return True


def fitting_steps(run: Path, seconds: float) -> int:
    """Return how many steps a stopped run has when it goes on for so long, at its last speed."""
    done = max(last_step(run), 1)
    lines = read_metrics(run / "metrics.jsonl")
    speeds = [line["images_per_second"] for line in lines if line.get("images_per_second")]
    if not speeds:
        return done
    config = json.loads((run / "config.json").read_text(encoding="utf-8"))
    more = MARGIN * max(seconds - RESTART, 0.0) * speeds[-1] / config["batch_size"]
    return done + int(more)


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
