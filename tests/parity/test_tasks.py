"""Models made for inpainting and upscaling give the same images as diffusers' pipelines."""

import json
from dataclasses import replace
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

import sample
from autoencoder import Autoencoder
from ldm import TextToImage, tasks
from ldm.guidance import Guidance
from ldm.pipeline.image_processor import mask_to_tensor
from ldm.pipeline.sampling import Sampling
from ldm.pipeline.scheduler_config import LOW_RES_SCHEDULER, LowResSchedule
from ldm.samplers.noise import SeededNoise
from ldm.schedule import ScheduleConfig
from ldm.tasks.inpaint import composite
from tests.helpers.random_models import (
    FLOW,
    PROMPT,
    SIDE,
    make_pipeline,
    pixels,
    smooth_image,
    with_unet,
)

# diffusers has not followed NumPy here
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SEED, STEPS, SCALE = 3, 10, 4.0
MODELS = {  # and the sampler that is diffusers' scheduler
    "noise": (ScheduleConfig(), "noise", "ddim"),
    "velocity": (ScheduleConfig(zero_terminal_snr=True), "velocity", "ddim"),
    "flow": (FLOW, "flow", "dpmpp_2m"),
}


def peer(model: TextToImage, folder: Path) -> diffusers.DiffusionPipeline:
    """Save the model and open it with the pipeline class that model_index.json names."""
    model.save(folder / "model")
    theirs = diffusers.DiffusionPipeline.from_pretrained(folder / "model", low_cpu_mem_usage=False)
    theirs.set_progress_bar_config(disable=True)
    return theirs


def sampling(sampler: str) -> Sampling:
    return Sampling(sampler=sampler, steps=STEPS, guidance=Guidance(scale=SCALE))


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(SEED)


def gray_disk(side: int = SIDE) -> Image.Image:
    """Return a mask with all grays, whose edge does not follow the grid of the latents."""
    y, x = np.mgrid[:side, :side]
    distance = np.hypot(y - 0.41 * side, x - 0.57 * side) / side
    return Image.fromarray((255 * (0.6 - 2 * (distance - 0.2)).clip(0, 1)).astype(np.uint8))


@pytest.mark.parametrize(
    ("kind", "strength"), [("noise", 1.0), ("velocity", 1.0), ("flow", 1.0), ("noise", 0.6)]
)
def test_native_inpainting_equals_diffusers(tmp_path, kind, strength):
    """Equal to one gray level, except for two intended differences.

    We use the most likely latents of the masked image, diffusers random ones; and we return what is
    outside the mask unchanged.
    """
    schedule, prediction, sampler = MODELS[kind]
    ours = with_unet(make_pipeline(schedule, prediction), in_channels=9)
    theirs, given, mask = peer(ours, tmp_path), smooth_image(), gray_disk()
    assert type(theirs).__name__ == "StableDiffusionInpaintPipeline"

    def latents(images: torch.Tensor) -> torch.Tensor:
        return theirs.vae.encode(images).latent_dist.mode() * theirs.vae.config.scaling_factor

    with torch.no_grad():
        images = theirs.image_processor.preprocess(given)
        binary = theirs.mask_processor.preprocess(mask)
        kept, whole = latents(images * (binary < 0.5)), latents(images)
    drawn = theirs(
        PROMPT[0],
        image=whole,  # latents, as it takes them, too
        mask_image=mask,
        masked_image_latents=kept,
        strength=strength,
        num_inference_steps=STEPS,
        guidance_scale=SCALE,
        generator=seeded(),
        height=SIDE,
        width=SIDE,
    ).images[0]
    task = tasks.inpaint(ours, given, mask, strength)
    (z,) = ours.draw(ours.make_requests(PROMPT, seed=[SEED]), sampling(sampler), task=task)
    assert np.abs(pixels(ours.to_picture(z)) - pixels(drawn)).max() <= 1
    (finished,) = ours(PROMPT, sampling=sampling(sampler), seed=SEED, task=task)
    blended = composite(given, drawn, mask_to_tensor(mask, (SIDE, SIDE)), radius=2 * task.factor)
    assert np.abs(pixels(finished) - pixels(blended)).max() <= 1
    if kind == "noise":
        assert np.array_equal(pixels(on_the_command_line(tmp_path, strength)), pixels(finished))
    outside = pixels(mask) == 0
    assert np.array_equal(pixels(finished)[outside], pixels(given)[outside])


def on_the_command_line(folder: Path, strength: float) -> Image.Image:
    """Generate the same image by sample.py."""
    smooth_image().save(folder / "given.png")
    gray_disk().save(folder / "mask.png")
    flags = {
        "model": folder,
        "init-image": folder / "given.png",
        "mask": folder / "mask.png",
        "strength": strength,
        "steps": STEPS,
        "guidance-scale": SCALE,
        "sampler": "ddim",
        "seed": SEED,
        "device": "cpu",
        "out": folder / "out",
    }
    sample.main([*PROMPT, *(str(x) for name, value in flags.items() for x in (f"--{name}", value))])
    return Image.open(folder / "out" / "00000.png")


@pytest.mark.parametrize(("kind", "level"), [("velocity", 20), ("flow", 130)])
def test_native_upscaling_equals_diffusers(tmp_path, kind, level):
    """Equal to one gray level; the same generator adds noise to the small image.

    The scale of the latents is 0.08333, which this pipeline sets whatever the folder says.
    """
    schedule, prediction, sampler = MODELS[kind]
    plain = make_pipeline(schedule, prediction)
    ours = with_unet(plain, in_channels=7, num_class_embeds=200)
    config = replace(ours.autoencoder.config, scaling_factor=0.08333)
    vae = Autoencoder(config).eval()
    vae.load_state_dict(ours.autoencoder.state_dict())
    ours.autoencoder = vae
    ours.low_res = LowResSchedule(
        config=ScheduleConfig(noise_schedule="linear", beta_start=0.001, beta_end=0.03),
        max_noise_level=150,
    )
    theirs, small = peer(ours, tmp_path), smooth_image(16, 16)
    assert type(theirs).__name__ == "StableDiffusionUpscalePipeline"
    assert theirs.low_res_scheduler.config.beta_end == 0.03
    again = TextToImage.load(tmp_path)  # with what the folder says
    shape, cpu = (3, 16, 16), torch.device("cpu")
    of_small = torch.Generator().manual_seed(SeededNoise(shape, [SEED], cpu).stream(0).seeds[0])
    options = {"num_inference_steps": STEPS, "guidance_scale": SCALE, "noise_level": level}
    options["latents"] = torch.randn(1, 4, 16, 16, generator=seeded())
    state = of_small.get_state()
    drawn = theirs(PROMPT[0], small, generator=of_small, **options).images[0]
    of_small.set_state(state)
    z = theirs(PROMPT[0], small, generator=of_small, output_type="latent", **options).images
    task = tasks.upscale(again, small, noise_level=level)
    (mine,) = again.draw(again.make_requests(PROMPT, seed=[SEED]), sampling(sampler), task=task)
    torch.testing.assert_close(mine, z, rtol=0, atol=1e-4 * z.std().item())
    assert np.abs(pixels(again.to_picture(mine, task)) - pixels(drawn)).max() <= 1
    assert drawn.size == (64, 64) and pixels(drawn).std() > 5
    with pytest.raises(ValueError, match=r"noise level is 151; for this model .* from 0 to 150"):
        tasks.upscale(again, small, noise_level=151)
    again.low_res = LowResSchedule()
    with pytest.raises(ValueError, match="noise level is 250; this U-Net knows levels below 200"):
        tasks.upscale(again, small, noise_level=250)


def test_what_a_small_picture_is_noised_by_is_written_back(tmp_path):
    """As the x4 upscaler's folder has it."""
    model = with_unet(make_pipeline(), in_channels=7, num_class_embeds=1000)
    model.save(tmp_path / "model")
    settings = {"_class_name": "DDPMScheduler", "beta_start": 0.0001, "beta_end": 0.02}
    settings |= {"beta_schedule": "scaled_linear", "num_train_timesteps": 1000, "clip_sample": True}
    (tmp_path / "model" / LOW_RES_SCHEDULER).write_text(json.dumps(settings | {"beta_end": 0.01}))
    again = TextToImage.load(tmp_path)
    assert again.low_res.config == ScheduleConfig(beta_start=0.0001, beta_end=0.01)
    again.save(tmp_path / "again")
    written = json.loads((tmp_path / "again" / LOW_RES_SCHEDULER).read_text())
    assert written["beta_end"] == 0.01 and written["beta_schedule"] == "scaled_linear"
    index = json.loads((tmp_path / "again" / "model_index.json").read_text())
    assert index["low_res_scheduler"] == ["diffusers", "DDPMScheduler"]
    (tmp_path / "model" / LOW_RES_SCHEDULER).write_text(
        json.dumps(settings | {"num_train_timesteps": 500})
    )
    with pytest.raises(ValueError, match="num_train_timesteps=500"):
        TextToImage.load(tmp_path)
