"""Draw the same picture with diffusers and with this project, for a model of any kind:

    python examples/tasks_in_diffusers.py runs/upscale --image picture.png --prompt "red heart"

The kinds are those of docs/tasks.md: with texts, with classes or without either, for inpainting,
super-resolution and restoring. Each function below shows which class of diffusers opens the folder,
and what it must be given. `--image` is the whole picture; the program masks, shrinks or blurs it.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    UNet2DConditionModel,
)
from diffusers.image_processor import VaeImageProcessor
from PIL import Image, ImageFilter

from ldm import TextToImage, tasks
from ldm.guidance import Guidance
from ldm.pipeline.compatibility import unet_kind
from ldm.pipeline.io import find_pipeline
from ldm.pipeline.sampling import Sampling
from ldm.samplers.noise import SeededNoise

STEPS, SEED = 10, 3
Pictures = tuple[Image.Image, Image.Image]  # diffusers' and ours


def seeded(seed: int = SEED) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def first_noise(ours: TextToImage, width: int, height: int) -> torch.Tensor:
    """Return the noise of shape 1xCxhxw that seed SEED means in both libraries."""
    factor = ours.latent_factor
    channels = ours.autoencoder.config.latent_channels
    return torch.randn(1, channels, height // factor, width // factor, generator=seeded())


def open_pipeline(ours: TextToImage, folder: Path) -> DiffusionPipeline:
    """Open the folder with the class that its model_index.json names; with our default sampler."""
    missing = {} if ours.text_encoder else {"text_encoder": None, "tokenizer": None}
    theirs = DiffusionPipeline.from_pretrained(folder, **missing)
    theirs.scheduler = DPMSolverMultistepScheduler.from_config(theirs.scheduler.config)
    theirs.set_progress_bar_config(disable=True)
    return theirs


def condition(ours: TextToImage, prompt: str) -> dict[str, object]:
    """The pipelines want a text embedding, also for a U-Net that does not look at it."""
    return {"prompt": prompt} if ours.text_encoder else {"prompt_embeds": torch.zeros(1, 1, 1)}


def guidance_scale(ours: TextToImage) -> float:
    """Guidance by the empty prompt needs a text encoder; 1 is none."""
    return 3.0 if ours.text_encoder else 1.0


def ordinary(ours: TextToImage, folder: Path, prompt: str) -> Pictures:
    theirs, scale = open_pipeline(ours, folder), guidance_scale(ours)
    settings = {"num_inference_steps": STEPS, "guidance_scale": scale, "generator": seeded()}
    drawn = theirs(**condition(ours, prompt), **settings).images[0]
    return drawn, ours(prompt, steps=STEPS, guidance_scale=scale, seed=SEED)[0]


@torch.no_grad()
def with_classes(ours: TextToImage, folder: Path, name: str) -> Pictures:
    """No pipeline of diffusers takes classes, but its U-Net, scheduler and autoencoder do."""
    (mine,) = ours(name, steps=STEPS, guidance_scale=1.0, seed=SEED)
    unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet")
    vae = AutoencoderKL.from_pretrained(folder, subfolder="vae")
    scheduler = DPMSolverMultistepScheduler.from_pretrained(folder, subfolder="scheduler")
    scheduler.set_timesteps(STEPS)
    side = unet.config.sample_size * ours.latent_factor
    latents = first_noise(ours, side, side)
    label = torch.tensor([ours.classes.index(name)])
    for t in scheduler.timesteps:
        predicted = unet(latents, t, encoder_hidden_states=None, class_labels=label).sample
        latents = scheduler.step(predicted, t, latents).prev_sample
    decoded = vae.decode(latents / vae.config.scaling_factor).sample
    return VaeImageProcessor().postprocess(decoded)[0], mine


def inpainting(ours: TextToImage, folder: Path, prompt: str, given: Image.Image) -> Pictures:
    """The right half is drawn. diffusers encodes the kept half at random, so we pass its latents.

    Both pictures are the network's own, before `sample.py` puts the kept pixels back.
    """
    theirs = open_pipeline(ours, folder)
    mask = np.zeros((given.height, given.width), np.uint8)
    mask[:, given.width // 2 :] = 255
    mask_image = Image.fromarray(mask)
    task = tasks.inpaint(ours, given, mask_image)
    drawn = theirs(
        **condition(ours, prompt),
        image=task.latents,
        mask_image=mask_image,
        masked_image_latents=task.inputs[:, 1:],
        latents=first_noise(ours, *given.size),
        width=given.width,
        height=given.height,
        num_inference_steps=STEPS,
        guidance_scale=guidance_scale(ours),
    ).images[0]
    sampling = Sampling(steps=STEPS, guidance=Guidance(scale=guidance_scale(ours)))
    (z,) = ours.draw(ours.make_requests(prompt, seed=SEED), sampling, task=task)
    return drawn, ours.to_picture(z)


def super_resolution(ours: TextToImage, folder: Path, prompt: str, given: Image.Image) -> Pictures:
    """diffusers sets the scale of the latents to that of one model, so it is set back."""
    theirs = open_pipeline(ours, folder)
    theirs.vae.register_to_config(scaling_factor=ours.autoencoder.config.scaling_factor)
    factor = ours.latent_factor
    small = given.resize((given.width // factor, given.height // factor), Image.Resampling.BICUBIC)
    shape = (3, small.height, small.width)  # the noise of the small picture has its own seed
    of_small = SeededNoise(shape, [SEED], torch.device("cpu")).stream(0).seeds[0]
    settings = {"num_inference_steps": STEPS, "guidance_scale": 1.0, "noise_level": 20}
    settings |= {"latents": first_noise(ours, *given.size), "generator": seeded(of_small)}
    drawn = theirs(**condition(ours, prompt), image=small, **settings).images[0]
    task = tasks.upscale(ours, small, noise_level=20)
    return drawn, ours(prompt, steps=STEPS, guidance_scale=1.0, seed=SEED, task=task)[0]


def restoring(ours: TextToImage, folder: Path, prompt: str, given: Image.Image) -> Pictures:
    theirs = open_pipeline(ours, folder)
    damaged = given.filter(ImageFilter.GaussianBlur(1.5))
    scale = guidance_scale(ours)
    settings = {"num_inference_steps": STEPS, "guidance_scale": scale, "image_guidance_scale": 1.0}
    settings |= {"image": damaged, "latents": first_noise(ours, *given.size)}
    drawn = theirs(**condition(ours, prompt), **settings).images[0]
    task = tasks.restore(ours, damaged)
    return drawn, ours(prompt, steps=STEPS, guidance_scale=scale, seed=SEED, task=task)[0]


TASKS = {"inpaint": inpainting, "upscale": super_resolution, "restore": restoring}


def main(arguments: list[str] | None = None) -> int:
    """Save both pictures and return the largest difference of a pixel, of 255."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0].rstrip(":"))
    parser.add_argument("model", help="run or model folder")
    parser.add_argument("--image", help="the picture that such a model begins with")
    parser.add_argument("--prompt", default="", help="a text, or the name of a class")
    parser.add_argument("--out", default="samples/examples", help="folder of both pictures")
    args = parser.parse_args(arguments)
    ours, folder = TextToImage.load(args.model), find_pipeline(Path(args.model))
    kind = unet_kind(ours.unet.config)
    if kind == "draw":
        draw = with_classes if ours.classes else ordinary
        pictures = draw(ours, folder, args.prompt)
    elif args.image is None:
        parser.error(f"{args.model} is not made to draw from a prompt alone: give --image PICTURE")
    else:
        given = Image.open(args.image).convert("RGB")
        pictures = TASKS[kind](ours, folder, args.prompt, given)

    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    for name, picture in zip(("diffusers", "latentsmith"), pictures, strict=True):
        picture.save(out / f"{name}.png")
    theirs, mine = (np.asarray(picture, int) for picture in pictures)
    difference = int(np.abs(theirs - mine).max())
    print(f"{out}: two pictures; pixels differ by at most {difference} of 255")
    return difference


if __name__ == "__main__":
    main()
