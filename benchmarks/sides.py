"""Both sides of benchmarks/sampling.py. As a program: draws once, and says how much memory it took.

What a side does not need is not imported for it, so nothing else counts as its memory.
"""

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # run from a checkout, whatever is installed

WORDS = ("red heart", "woman astronaut", "flag: Japan", "alarm clock", "blue car", "sad face")


def load(
    side: str, folder: Path, *, steps: int, batch_size: int, guidance_scale: float
) -> Callable[[], object]:
    """A function that draws the batch. side: "ours" or "diffusers", then what is special of it."""
    prompts = [f"{WORDS[k % len(WORDS)]} {k}" for k in range(batch_size)]
    options = {"guidance_scale": guidance_scale}
    if side.startswith("ours"):
        pipeline = load_ours(side, folder)
        options |= {"steps": steps, "batch_size": batch_size, "sampler": "dpmpp_2m"}
    else:
        pipeline = load_diffusers(side, folder)
        options |= {"num_inference_steps": steps}
    return partial(pipeline, prompts, **options)


def load_ours(side: str, folder: Path) -> Callable:
    import torch

    from generation.compile import compile_unet
    from ldm import TextToImage

    pipeline = TextToImage.load(folder)
    if "bf16" in side:
        pipeline.to("cpu", torch.bfloat16)
    if "compiled" in side:
        pipeline.cached_forward = compile_unet(pipeline.unet)
    return pipeline


def load_diffusers(side: str, folder: Path) -> Callable:
    import torch
    from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline
    from diffusers.utils.logging import set_verbosity_error

    set_verbosity_error()  # it warns of modules to be kept in fp32 where there are none
    pipeline = StableDiffusionPipeline.from_pretrained(folder, low_cpu_mem_usage=False)
    assert isinstance(pipeline.scheduler, DPMSolverMultistepScheduler)
    if "bf16" in side:
        pipeline.to(torch.bfloat16)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def resident(entry: str) -> float:
    """MB of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(entry))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("side")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--batch-size", type=int, required=True)
    parser.add_argument("--guidance-scale", type=float, required=True)
    given = vars(parser.parse_args())
    if given["side"].startswith("ours"):
        sys.modules["transformers"] = None  # open_clip imports it where it is; ours needs it not
    draw = load(**given)
    before = resident("VmRSS")
    draw()
    print(resident("VmHWM"), resident("VmHWM") - before)


if __name__ == "__main__":
    main()
