"""python benchmarks/sampling.py

Whole pictures beside diffusers' StableDiffusionPipeline: same weights, prompts, steps, batch,
guidance and sampler, in fp32 unless said otherwise, in one run. All draw in turn, so that whatever
else the machine does hits them alike, and the median of the rounds' ratios to diffusers in fp32
counts. Peak memory is that of a process of its own for each.

Without --model the weights are random, of the architecture that --preset names.
"""

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # run from a checkout, whatever is installed

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from autoencoder import Autoencoder
from autoencoder.model import PRESETS as AUTOENCODERS
from benchmarks.sides import load
from conditioning.clip import PRESETS as CLIPS
from conditioning.clip import Clip
from ldm import TextToImage
from ldm.pipeline.io import find_pipeline
from ldm.schedule import ScheduleConfig
from ldm.unet import PRESETS as UNETS
from ldm.unet import UNet
from training.cli import parse, run_main
from training.flags import Positive


@dataclass(frozen=True, kw_only=True)
class Config:
    model: Path | None = None  # a run folder or a pipeline folder; random weights when left out
    preset: str = "demo"  # without a model: its architectures
    steps: Positive[int] = 25  # network evaluations per picture
    batch_size: Positive[int] = 4  # pictures drawn at once, of as many prompts
    guidance_scale: float = 4.0
    rounds: Positive[int] = 7  # each draws once for each side
    bf16: bool = True  # both once more: ours with its U-Net in bf16, diffusers with everything
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
        ours = ["ours", "ours, bf16"] if config.bf16 else ["ours"]
        ours += [f"{name}, compiled" for name in ours] if config.compile else []
        sides = ["diffusers", *(["diffusers, bf16"] if config.bf16 else []), *ours]
        options = {
            name: getattr(config, name) for name in ("steps", "batch_size", "guidance_scale")
        }
        compare({side: load(side, folder, **options) for side in sides}, config)
        for side in sides:
            whole, more = peak_memory(side, folder, options)
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
    peaks = {"time": peak, "CPU time": peak / torch.get_num_threads()}
    print(f"peak of a matrix product: {peak / 1e9:.0f} GFLOP/s")
    for side in sides:
        with FlopCounterMode(display=False) as counter:
            sides[side.removesuffix(", compiled")]()  # whose products it sees
        flops = counter.get_total_flops() / config.batch_size
        for clock in clocks:
            theirs, ours = (spent[x][clock][1:] for x in ("diffusers", side))  # the first warms up
            ratio = statistics.median(a / b for a, b in zip(theirs, ours, strict=True))
            print(
                f"{side:20} {1e3 * statistics.median(ours):8.1f} ms of {clock:8} per picture,"
                f" {ratio:5.2f} times as fast; {flops / 1e9:.1f} GFLOP, "
                f"{flops / min(ours) / peaks[clock]:.0%} of the peak",
                flush=True,
            )


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


def peak_memory(side: str, folder: Path, options: dict[str, Any]) -> list[float]:
    """MB that a process of its own held at most, and how much of it came with the drawing."""
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    command = [sys.executable, str(Path(__file__).with_name("sides.py")), side, str(folder), *flags]
    out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return [float(number) for number in out.splitlines()[-1].split()]


if __name__ == "__main__":
    run_main(main)
