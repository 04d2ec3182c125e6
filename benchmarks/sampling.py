"""python benchmarks/sampling.py

Whole pictures beside diffusers' StableDiffusionPipeline: same weights, prompts, steps, batch,
guidance and sampler, in fp32 unless said otherwise, in one run. All draw in turn, so that whatever
else the machine does hits them alike, and the median of the rounds' ratios counts. Peak memory is
that of a process of its own for each.

Without --model the weights are random, of the architecture that --preset names.
"""

import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # run from a checkout, whatever is installed

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from autoencoder import Autoencoder
from autoencoder.autoencoder import PRESETS as AUTOENCODERS
from conditioning.clip import PRESETS as CLIPS
from conditioning.clip import Clip
from drawing.compiled import compile_unet
from ldm import TextToImage
from ldm.files import find_pipeline
from ldm.schedule import ScheduleConfig
from ldm.unet import PRESETS as UNETS
from ldm.unet import UNet
from training.bounds import Positive
from training.cli import parse, run_main

WORDS = ("red heart", "woman astronaut", "flag: Japan", "alarm clock", "blue car", "sad face")


@dataclass(frozen=True, kw_only=True)
class Config:
    model: Path | None = None  # a run folder or a pipeline folder; random weights when left out
    preset: str = "demo"  # without a model: its architectures
    steps: Positive[int] = 25  # network evaluations per picture
    batch_size: Positive[int] = 4  # pictures drawn at once, of as many prompts
    guidance_scale: float = 4.0
    rounds: Positive[int] = 7  # each draws once for each side
    bf16: bool = True  # ours once more, with its U-Net in bf16; the peer in fp32
    compile: bool = False  # ours once more for each precision, with its U-Net compiled


def main(argv: Sequence[str] | None = None) -> None:
    config = parse(Config, argv, __doc__)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "model"
        if config.model is None:
            random_model(config.preset).save(folder)
        else:
            folder = find_pipeline(config.model)
        what = config.preset if config.model is None else config.model
        print(
            f"{what}, {config.batch_size} pictures, {config.steps} steps, "
            f"{torch.get_num_threads()} threads"
        )
        names = ["ours", "ours, bf16"] if config.bf16 else ["ours"]
        names += [f"{name}, compiled" for name in names] if config.compile else []
        compare({side: load(side, folder, config) for side in ["diffusers", *names]}, config)
        for side in ("diffusers", "ours"):
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                whole, more = pool.apply(peak_memory, (side, folder, config))
            print(f"{side:20} peak memory {whole:7.1f} MB, of which for drawing {more:6.1f} MB")


def compare(sides: dict[str, Callable[[], None]], config: Config) -> None:
    """Also by the CPU time of the process, which other processes disturb less than the time that
    passes; with several threads it counts waiting at a barrier as work."""
    clocks = {"time": time.perf_counter, "CPU time": time.process_time}
    spent = {side: {clock: [] for clock in clocks} for side in sides}
    for round_ in range(config.rounds + 1):
        for side in sides if round_ % 2 else reversed(sides):
            start = {clock: read() for clock, read in clocks.items()}
            sides[side]()
            for clock, read in clocks.items():
                spent[side][clock].append((read() - start[clock]) / config.batch_size)
    peak = matmul_peak()
    print(f"peak of a matrix product: {peak / 1e9:.0f} GFLOP/s")
    for side, draw in sides.items():
        with FlopCounterMode(display=False) as counter:
            draw()
        flops = counter.get_total_flops() / config.batch_size
        for clock in clocks:
            theirs, ours = (spent[x][clock][1:] for x in ("diffusers", side))  # the first warms up
            ratio = statistics.median(a / b for a, b in zip(theirs, ours, strict=True))
            print(
                f"{side:20} {1e3 * statistics.median(ours):8.1f} ms of {clock:8} per picture,"
                f" {ratio:5.2f} times as fast; {flops / 1e9:.1f} GFLOP, "
                f"{flops / min(ours) / peak:.0%} of the peak",
                flush=True,
            )


def load(side: str, folder: Path, config: Config) -> Callable[[], None]:
    """A function that draws the batch."""
    prompts = [f"{WORDS[k % len(WORDS)]} {k}" for k in range(config.batch_size)]
    if side != "diffusers":
        pipeline = TextToImage.load(folder)
        if "bf16" in side:
            pipeline.to("cpu", torch.bfloat16)
        if "compiled" in side:
            compile_unet(pipeline.unet)
        options = {"steps": config.steps, "guidance_scale": config.guidance_scale}
        options["batch_size"] = config.batch_size
        return partial(pipeline, prompts, sampler="dpmpp_2m", **options)
    from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(folder, low_cpu_mem_usage=False)
    assert isinstance(pipeline.scheduler, DPMSolverMultistepScheduler)
    pipeline.set_progress_bar_config(disable=True)
    options = {"num_inference_steps": config.steps, "guidance_scale": config.guidance_scale}
    return partial(pipeline, prompts, **options)


def random_model(preset: str) -> TextToImage:
    torch.manual_seed(0)
    text_encoder = Clip(CLIPS[preset]).text_encoder()
    unet = UNet(UNETS[preset])
    for weight in unet.parameters():  # some start at zero, which is no usual input
        if not weight.any():
            nn.init.normal_(weight, std=0.02)
    autoencoder = Autoencoder(AUTOENCODERS[preset])
    flow = ScheduleConfig(noise_schedule="flow")
    return TextToImage(unet.eval(), autoencoder.eval(), text_encoder, flow, "flow")


def matmul_peak(side: int = 1024, repeats: int = 20) -> float:
    """FLOP per second of the fastest of some products of square matrices."""
    a, b = torch.randn(2, side, side)
    times = []
    for _ in range(repeats):
        start = time.process_time()
        a @ b
        times.append(time.process_time() - start)
    return 2 * side**3 / min(times) * torch.get_num_threads()


def peak_memory(side: str, folder: Path, config: Config) -> tuple[float, float]:
    """MB that this process held at most, and how much of it came with the drawing."""
    draw = load(side, folder, config)
    before = resident("VmRSS")
    draw()
    return resident("VmHWM"), resident("VmHWM") - before


def resident(entry: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(entry))


if __name__ == "__main__":
    run_main(main)
