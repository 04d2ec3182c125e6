"""Draw with guidance of your own. A few seconds on a CPU:

    python examples/own_guidance.py

Guidance is whatever turns the estimates with and without the prompt into one estimate. Here its
scale falls with the noise: strong while the composition is decided, off for the details.
"""

from pathlib import Path

import torch
from PIL import Image

from foundation.shapes import Latents, Timesteps
from ldm import TextToImage
from ldm.samplers import NoiseLevels, dpmpp_2m

MODEL = Path(__file__).parents[1] / "checkpoints" / "demo"  # or your own: runs/ldm
PROMPT = "woman astronaut"
HIGHEST_SCALE = 6.0


@torch.no_grad()
def main(out: str = "samples/examples", steps: int = 25) -> Image.Image:
    """Draw a picture, save it, and return it."""
    pipeline = TextToImage.load(MODEL)
    denoiser = pipeline.make_denoiser()
    ((cond, _),) = pipeline.condition_on(PROMPT)
    ((uncond, _),) = pipeline.condition_on("")
    estimate = denoiser.bind([uncond, cond])  # one network call for both

    def denoise(z_t: Latents, t: Timesteps) -> Latents:
        """Estimate the clean latents; all that the sampler knows."""
        z_uncond, z_cond = estimate(z_t, t).chunk(2)
        scale = 1 + (HIGHEST_SCALE - 1) * float(t[0]) / 1000
        return z_uncond + scale * (z_cond - z_uncond)

    generator = torch.Generator().manual_seed(3)
    noise = torch.randn(1, *pipeline.latent_shape(64, 64), generator=generator)
    latents = dpmpp_2m(denoise, noise, NoiseLevels(denoiser.schedule, steps))
    picture = pipeline.to_picture(latents)
    Path(out).mkdir(parents=True, exist_ok=True)
    picture.save(Path(out) / "own_guidance.png")
    return picture


if __name__ == "__main__":
    main()
