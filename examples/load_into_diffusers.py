"""Draw the same picture with diffusers and with this project, from one model folder:

    python examples/load_into_diffusers.py

A trained model is a Stable Diffusion pipeline folder, so diffusers opens it without conversion.
Seed s means the same on both sides: noise from `torch.Generator().manual_seed(s)` on the CPU.
"""

from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionPipeline

from ldm import TextToImage

MODEL = Path(__file__).parents[1] / "checkpoints" / "demo"  # or your own: runs/ldm/model
PROMPT = "woman astronaut"
STEPS, GUIDANCE_SCALE, SEED = 10, 4.0, 3


def main(model: Path = MODEL, folder: str = "samples/examples") -> int:
    """Save both pictures and return the largest difference of a pixel, of 255."""
    theirs = StableDiffusionPipeline.from_pretrained(model)
    theirs.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(SEED)
    settings = {"num_inference_steps": STEPS, "guidance_scale": GUIDANCE_SCALE}
    their_picture = theirs(PROMPT, **settings, generator=generator).images[0]

    ours = TextToImage.load(model)
    (our_picture,) = ours([PROMPT], steps=STEPS, guidance_scale=GUIDANCE_SCALE, seed=SEED)

    out = Path(folder)
    out.mkdir(parents=True, exist_ok=True)
    their_picture.save(out / "diffusers.png")
    our_picture.save(out / "latentsmith.png")
    difference = np.abs(np.asarray(their_picture, int) - np.asarray(our_picture, int)).max()
    print(f"{out}: two pictures; pixels differ by at most {difference} of 255")
    return int(difference)


if __name__ == "__main__":
    main()
