"""What must be right before speed counts: each function raises AssertionError if it is not."""

import json
import math
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.gpu_parts import denoiser_speed, drawing_speed
from benchmarks.gpu_parts.job import ROOT, Job
from benchmarks.gpu_parts.small_data import make_squares
from benchmarks.gpu_parts.tiny_trainers import LOSS, LOSSES, tiny_trainer
from foundation.errors import UserError
from training.precision import Precision

# docs/hardware.md states these.
LOSS_TOLERANCE = 0.02  # relative; of losses after the same steps on a GPU in bf16
PICTURE_TOLERANCE = 2.0  # gray levels of 255, mean over a picture; CPU and GPU in fp32
COMPILED_TOLERANCE = 4.0  # the same, of a U-Net in bf16 with and without compiled code
COMPARED = 18  # steps with and without compiled code
STEPS, SAVED = 20, 5  # of the tiny trainings, and between their states


def stages(job: Job) -> None:
    """Train three tiny stages, kill one and resume it, and draw on the device and on the CPU."""
    world = Stages(job)
    world.train("clip")
    world.train("vae")
    straight, killed = job.files / "ldm", job.files / "ldm-killed"
    world.train("ldm")
    command = world.command("ldm", killed)
    process = subprocess.Popen([sys.executable, *command], cwd=ROOT)
    while process.poll() is None and not list((killed / "state").glob("step-*")):
        time.sleep(0.001)
    was_running = process.poll() is None
    process.kill()
    process.wait()
    world.run(command)
    before, after = losses(straight), losses(killed)
    assert before.keys() == after.keys() and len(before) > 1, (before, after)
    difference = max(abs(before[k] / after[k] - 1) for k in before)
    job.record("killed and resumed", killed_while_running=was_running, difference=difference)
    assert difference <= (LOSS_TOLERANCE if job.on_gpu else 0), difference
    pictures = [world.draw(straight, device) for device in (job.device, "cpu")]
    gray_levels = mean_difference(*pictures)
    job.record("pictures of CPU and device", gray_levels=gray_levels)
    assert gray_levels <= PICTURE_TOLERANCE, gray_levels


def parallel(job: Job) -> None:
    """Train three tiny stages under torchrun with one rank: NCCL on GPUs, gloo on CPUs."""
    world = Stages(job, steps=4, torchrun=True)
    for stage in ("clip", "vae", "ldm"):
        world.train(stage)
    job.record("one rank of torchrun", loss=max(losses(job.files / "ldm").items())[1])


class Stages:
    """Three tiny trainings by the scripts, on squares of a few colors."""

    def __init__(self, job: Job, steps: int = STEPS, torchrun: bool = False):
        self.job, self.steps, self.torchrun = job, steps, torchrun
        self.data = make_squares(job.files / "data", 64)

    def command(self, stage: str, out: Path) -> list[str]:
        command = [f"train_{stage}.py", "--preset", "tiny-32", "--data", str(self.data)]
        command += ["--out", str(out), "--device", self.job.device, "--steps", str(self.steps)]
        command += ["--save-every", str(SAVED), "--log-every", "2", "--batch-size", "8"]
        command += ["--evaluate-every", str(self.steps), "--warmup", "2"]
        command += ["--precision", Precision(torch.device(self.job.device)).name]
        if stage == "ldm":
            command += ["--vae", str(self.job.files / "vae")]
            command += ["--text-encoder", str(self.job.files / "clip")]
        if self.torchrun:
            torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1"]
            return [*torchrun, *command]
        return command

    def train(self, stage: str) -> None:
        started = time.time()
        out = self.job.files / stage
        self.run(self.command(stage, out))
        assert (out / "model").is_dir(), f"{out} has no model"
        self.job.record(f"train {stage}", seconds=time.time() - started, steps=self.steps)

    def run(self, command: list[str]) -> None:
        arguments = [sys.executable, *command]
        subprocess.run(arguments, cwd=ROOT, check=True, timeout=max(1.0, self.job.left()))

    def draw(self, model: Path, device: str) -> Image.Image:
        out = self.job.files / f"pictures-{len(list(self.job.files.glob('pictures-*')))}"
        command = ["sample.py", "a red square, 0", "--model", str(model), "--out", str(out)]
        self.run([*command, "--device", device, "--steps", "8"])
        (picture,) = out.glob("*.png")
        return Image.open(picture).convert("RGB")


def losses(run: Path) -> dict[int, float]:
    """Return the loss by step of a run's metrics."""
    lines = map(json.loads, (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


def mean_difference(a: Image.Image, b: Image.Image) -> float:
    """Return the mean difference of two pictures, in gray levels."""
    return float(np.abs(np.asarray(a, float) - np.asarray(b, float)).mean())


def compiled(job: Job, stage: str) -> None:
    """Compare training steps with and without compiled code; on a GPU that is CUDA graphs."""
    runs: dict[bool, list[float]] = {}
    for is_compiled in (False, True):
        started = time.time()
        trainer = tiny_trainer(job, stage, is_compiled)
        metrics = [trainer.step(k)[LOSSES[stage]] for k in range(COMPARED)]
        runs[is_compiled] = [each.item() for each in metrics]
        job.record(
            "compiled" if is_compiled else "plain",
            losses=[round(loss, 5) for loss in runs[is_compiled]],
            seconds=time.time() - started,
        )
        if job.on_gpu:
            check_graphs(job, trainer, stage)
    # Relative to the first loss: late losses of CLIP on one batch are a thousandth of it.
    difference = max(abs(a - b) for a, b in zip(*runs.values(), strict=True)) / runs[False][0]
    job.record(f"compiled training, {stage}", difference=difference)
    assert difference <= LOSS_TOLERANCE, difference


def check_graphs(job: Job, trainer: Any, stage: str) -> None:
    """Record how many graphs the steps are: for the autoencoder one per phase of its loss."""
    graphs = len(trainer.update.recorded)
    job.record(f"CUDA graphs, {stage}", recorded=graphs)
    assert graphs == (3 if stage == "vae" else 1), graphs


def graphs(job: Job) -> None:
    """Compare pictures drawn with and without compiled code; on a GPU that is CUDA graphs."""
    plain, fast = (drawing_speed.our_call(job, 1, compiled=c) for c in (False, True))
    picture: Any = plain()
    again: Any = [fast() for _ in range(3)][-1]
    gray_levels = mean_difference(picture[0], again[0])
    job.record("compiled pictures", gray_levels=gray_levels)
    assert gray_levels <= COMPILED_TOLERANCE, gray_levels


def waiting(job: Job) -> None:
    """Do training steps of each stage during which the host must not wait for the GPU."""
    for stage, loss in LOSSES.items():
        trainer = tiny_trainer(job, stage, loss=replace(LOSS, discriminator_start=0))
        trainer.update = trainer.train_on  # kernel by kernel
        first = LOSS.adversarial_start  # when all terms of the loss take part
        for k in range(first, first + 3):
            trainer.step(k)
        if job.on_gpu:
            torch.cuda.synchronize()
            torch.cuda.set_sync_debug_mode("error")
        try:
            metrics = [trainer.step(k) for k in range(first + 3, first + 6)]
        finally:
            if job.on_gpu:
                torch.cuda.set_sync_debug_mode("default")
        assert all(math.isfinite(each[loss].item()) for each in metrics)
        job.record(f"steps without waiting, {stage}", steps=len(metrics), checked=job.on_gpu)


def memory(job: Job) -> None:
    """Draw more pictures at once than the memory holds: smaller batches must be tried."""
    unet, autoencoder, _ = drawing_speed.make_networks(
        Job(**(vars(job) | {"rehearse": True}))  # the tiny networks
    )
    from autoencoder import Autoencoder
    from ldm import TextToImage
    from ldm.config import ScheduleConfig
    from ldm.denoiser import Conditioning
    from ldm.guidance import Guidance
    from ldm.pipeline.batching import Request
    from ldm.pipeline.sampling import Sampling
    from ldm.unet import UNet

    count, side = (64, 512) if job.on_gpu else (8, 64)
    text_encoder = denoiser_speed.WidthOnly(unet.cross_attention_dim)
    pipeline = TextToImage(
        UNet(unet).eval(), Autoencoder(autoencoder).eval(), text_encoder, ScheduleConfig(), "noise"
    ).to(job.device)
    text = Conditioning(torch.randn(1, 8, text_encoder.width, device=job.device))
    requests = [Request([(text, 1.0)], text, seed) for seed in range(count)]
    sizes: list[int] = []
    limit_memory(job, pipeline)
    sampling = Sampling(steps=2, guidance=Guidance(scale=4.0))
    draw = partial(
        pipeline.draw, requests, sampling, height=side, width=side, progress=sizes.append
    )
    if not job.on_gpu:  # where batches are filled up, so that smaller ones do not help
        try:
            draw(batch_size=count)
        except UserError as error:
            return job.record("pictures in smaller batches", refused=str(error))
        raise AssertionError("the memory was not limited")
    latents = draw(batch_size=count)
    assert len(latents) == count and all(bool(z.isfinite().all()) for z in latents)
    job.record("pictures in smaller batches", wanted=count, drawn=sorted({*sizes}))
    assert max(sizes) < count, sizes


def limit_memory(job: Job, pipeline: Any) -> None:
    """Leave a little memory; on a CPU, act as if more than two pictures did not fit."""
    if job.on_gpu:
        total = torch.cuda.get_device_properties(0).total_memory
        allowed = torch.cuda.memory_reserved() + 160 * 2**20
        torch.cuda.set_per_process_memory_fraction(min(1.0, allowed / total))
        return
    from ldm.unet.cached import forward_cached

    def forward(unet: Any, latents: torch.Tensor, *rest: Any) -> torch.Tensor:
        if len(latents) > 2:
            raise torch.OutOfMemoryError("as if the memory did not suffice")
        return forward_cached(unet, latents, *rest)

    pipeline.cached_forward = forward


CHECKS = ("stages", "parallel", "graphs", "waiting", "memory")
CHECKS += ("compiled:clip", "compiled:vae", "compiled:ldm")
