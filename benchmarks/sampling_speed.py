"""python benchmarks/sampling_speed.py

Speed and memory of whole images, compared with diffusers' StableDiffusionPipeline in one run: same
weights, prompts, steps, batch, guidance and sampler; in fp32 unless named otherwise. All sides
generate in turn. Prints the median time per image and the median of the rounds' ratios of
diffusers' time in fp32 to it: above 1 is faster. Peak memory is measured in a process per side.

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

sys.path.insert(0, str(Path(__file__).parents[1]))  # prefer this checkout to an installed version

from training.cli import answer_early, parse, run_main
from training.flags import Positive


@dataclass(frozen=True, kw_only=True)
class Config:
    model: Path | None = None  # run folder or pipeline folder; left out: random weights
    preset: str = "demo"  # architectures of a model with random weights
    steps: Positive[int] = 25  # number of sampling steps
    batch_size: Positive[int] = 4  # images generated at once, each of its own prompt
    guidance_scale: float = 4.0  # as in sample.py
    rounds: Positive[int] = 7  # measurements of each side
    bf16: bool = True  # also in bf16: the U-Net of ours, all networks of diffusers
    compile: bool = False  # also ours with a compiled U-Net, in each precision


if __name__ == "__main__":
    answer_early(Config, __doc__)  # the imports below take seconds


import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from autoencoder import Autoencoder
from autoencoder.model import PRESETS as AUTOENCODERS
from benchmarks.sampling_worker import load
from benchmarks.timing import time_in_turn
from conditioning.clip import PRESETS as CLIPS
from conditioning.clip import Clip
from ldm import TextToImage
from ldm.config import ScheduleConfig
from ldm.pipeline.io import find_pipeline
from ldm.unet import PRESETS as UNETS
from ldm.unet import UNet


def main(argv: Sequence[str] | None = None) -> None:
    config = parse(Config, argv, __doc__)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "model"
        if config.model is None:
            make_random_model(config.preset).save(folder)
        else:
            folder = find_pipeline(config.model)
        print(
            f"{config.model or config.preset}, {config.batch_size} images, {config.steps} steps, "
            f"{torch.get_num_threads()} threads"
        )
        ours = ["ours", "ours, bf16"] if config.bf16 else ["ours"]
        if config.compile:
            ours += [f"{side}, compiled" for side in ours]
        sides = ["diffusers", *(["diffusers, bf16"] if config.bf16 else []), *ours]
        options = {
            "steps": config.steps,
            "batch_size": config.batch_size,
            "guidance_scale": config.guidance_scale,
        }
        compare_speed({side: load(side, folder, **options) for side in sides}, config)
        for side in sides:
            peak, generating = measure_memory(side, folder, options)
            print(f"{side:20} peak memory {peak:7.1f} MB, {generating:6.1f} MB for generating")


def compare_speed(sides: dict[str, Callable[[], object]], config: Config) -> None:
    """Print time and CPU time per image, their ratios to diffusers, and the use of the CPU."""
    seconds = time_in_turn(sides, config.rounds)
    peak = measure_matmul_peak()
    peaks = {"time": peak, "CPU time": peak / torch.get_num_threads()}
    print(f"peak of a matrix product: {peak / 1e9:.0f} GFLOP/s")
    for side in sides:
        flops = count_flops(sides[side.removesuffix(", compiled")])  # compiled code hides them
        for clock, by_side in seconds.items():
            theirs, ours = by_side["diffusers"], by_side[side]
            ratio = statistics.median(a / b for a, b in zip(theirs, ours, strict=True))
            milliseconds = 1e3 * statistics.median(ours) / config.batch_size
            print(
                f"{side:20} {milliseconds:8.1f} ms of {clock:8} per image, {ratio:5.2f} times as "
                f"fast; {flops / config.batch_size / 1e9:.1f} GFLOP, "
                f"{flops / min(ours) / peaks[clock]:.0%} of the peak",
                flush=True,
            )


def count_flops(call: Callable[[], object]) -> int:
    """Count the floating-point operations of the matrix products and convolutions in a call."""
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def make_random_model(preset: str) -> TextToImage:
    """Make a model with random weights; layers that start at zero get small ones."""
    torch.manual_seed(0)
    text_encoder = Clip(CLIPS[preset]).text_encoder()
    unet = UNet(UNETS[preset])
    for weight in unet.parameters():
        if not weight.any():
            nn.init.normal_(weight, std=0.02)
    autoencoder = Autoencoder(AUTOENCODERS[preset])
    flow = ScheduleConfig(noise_schedule="flow")
    return TextToImage(unet.eval(), autoencoder.eval(), text_encoder, flow, "flow")


def measure_matmul_peak(side: int = 1024, repeats: int = 20) -> float:
    """Return the FLOP per second of the fastest of several products of square matrices."""
    a, b = torch.randn(2, side, side)
    seconds = []
    for _ in range(repeats):
        start = time.process_time()
        torch.matmul(a, b)
        seconds.append(time.process_time() - start)
    return 2 * side**3 / min(seconds) * torch.get_num_threads()


def measure_memory(side: str, folder: Path, options: dict[str, Any]) -> list[float]:
    """Return the peak memory of a process of its own in MB, and the part for generating."""
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    worker = Path(__file__).with_name("sampling_worker.py")
    command = [sys.executable, str(worker), side, str(folder), *flags]
    out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return [float(number) for number in out.splitlines()[-1].split()]


if __name__ == "__main__":
    run_main(main, Config)
