"""Draw with a sampler of your own. A few seconds on a CPU:

    python examples/own_sampler.py

A sampler is a function of three arguments. It knows nothing of prompts, guidance, or what the
network predicts, so it works with every model and every task.
"""

from pathlib import Path

from PIL import Image

from foundation.shapes import Denoise, Latents
from ldm import TextToImage
from ldm.samplers import SAMPLERS, NoiseLevels

MODEL = Path(__file__).parents[1] / "checkpoints" / "demo"  # or your own: runs/ldm


def adams_bashforth(denoise: Denoise, z: Latents, levels: NoiseLevels) -> Latents:
    """The two-step method of Adams and Bashforth: second order, one network call per step.

    denoise: estimates the clean latents from latents and times.
    z: noise to begin with.
    levels: alpha and sigma at each step; here they also take the steps.
    """
    previous = None
    for i in range(len(levels)):
        z_0 = denoise(z, levels.time(i, z))
        slope = levels.slope(z, z_0, i)
        extrapolated = slope if previous is None else 1.5 * slope - 0.5 * previous
        z = levels.euler_step(z, extrapolated, i)
        previous = slope
    return z


def main(out: str = "samples/examples", steps: int = 25) -> Image.Image:
    """Register the sampler, draw a picture with it, save it, and return it."""
    SAMPLERS["adams_bashforth"] = adams_bashforth
    pipeline = TextToImage.load(MODEL)
    (picture,) = pipeline(
        ["woman astronaut"], sampler="adams_bashforth", steps=steps, guidance_scale=2.0, seed=3
    )
    Path(out).mkdir(parents=True, exist_ok=True)
    picture.save(Path(out) / "own_sampler.png")
    return picture


if __name__ == "__main__":
    main()
