"""One side of benchmarks/sampling_speed.py: our pipeline or that of diffusers.

As a program it generates one batch and prints how much memory it took, in MB: at most, and above
what the loaded model takes. A side imports nothing that it does not need, because imports count as
its memory.
"""

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # prefer this checkout to an installed version

PROMPTS = ("red heart", "woman astronaut", "flag: Japan", "alarm clock", "blue car", "sad face")


def load(
    side: str, folder: Path, *, steps: int, batch_size: int, guidance_scale: float
) -> Callable[[], object]:
    """Load a pipeline folder; return a function that generates a batch.

    Args:
        side: "ours" or "diffusers", followed by ", bf16" and for ours by ", compiled".
    """
    prompts = [f"{PROMPTS[k % len(PROMPTS)]} {k}" for k in range(batch_size)]
    options: dict[str, Any] = {"guidance_scale": guidance_scale}
    if side.startswith("ours"):
        pipeline = load_ours(side, folder)
        options |= {"steps": steps, "batch_size": batch_size, "sampler": "dpmpp_2m"}
    else:
        pipeline = load_diffusers(side, folder)
        options |= {"num_inference_steps": steps}
    return partial(pipeline, prompts, **options)


def load_ours(side: str, folder: Path) -> Callable[..., object]:
    import torch

    from generation.compile import compile_unet
    from ldm import TextToImage

    pipeline = TextToImage.load(folder)
    if "bf16" in side:
        pipeline.to("cpu", torch.bfloat16)
    if "compiled" in side:
        pipeline.cached_forward = compile_unet(pipeline.unet)
    return pipeline


def load_diffusers(side: str, folder: Path) -> Callable[..., object]:
    import torch
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import (
        StableDiffusionPipeline,
    )
    from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
    from diffusers.utils.logging import set_verbosity_error

    set_verbosity_error()  # it warns of modules to keep in fp32, which do not exist here
    pipeline = StableDiffusionPipeline.from_pretrained(folder, low_cpu_mem_usage=False)
    assert isinstance(pipeline.scheduler, DPMSolverMultistepScheduler)
    if "bf16" in side:
        pipeline.to(torch.bfloat16)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def resident_memory(entry: str) -> float:
    """Return the memory of this process in MB; entry: VmRSS (now) or VmHWM (at most so far)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(entry))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("side")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--batch-size", type=int, required=True)
    parser.add_argument("--guidance-scale", type=float, required=True)
    arguments = vars(parser.parse_args())
    if arguments["side"].startswith("ours"):
        # open_clip imports transformers where it is installed, and we do not need it.
        sys.modules["transformers"] = None  # pyright: ignore[reportArgumentType]
    generate = load(**arguments)
    loaded = resident_memory("VmRSS")
    generate()
    peak = resident_memory("VmHWM")
    print(peak, peak - loaded)


if __name__ == "__main__":
    main()
