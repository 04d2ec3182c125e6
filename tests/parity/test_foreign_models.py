"""Models of diffusers work in every command, and give the same images as in diffusers."""

from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import CLIPTokenizer

import export
import sample
import train_ldm
import train_vae
from autoencoder import Autoencoder
from conditioning.tokenizer import clip_tokenizer, save_tokenizer
from ldm import TextToImage
from tests.helpers import bad_calls as mistakes
from tests.helpers import compvis_files as compvis
from tests.helpers.random_models import pixels

# diffusers has not followed NumPy here
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

# Scheduler files as published.
TABLE = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
TABLE |= {"set_alpha_to_one": False, "steps_offset": 1}
PNDM = {**TABLE, "skip_prk_steps": True}
DDIM = {**TABLE, "clip_sample": False, "prediction_type": "v_prediction"}
FORMS: dict[str, dict[str, Any]] = {
    "SD 1.x": {},
    "SD 2.x": {"variant": "fp16", "max_shard_size": "200KB"},  # v, in half precision and in shards
}
SIDE, STEPS, SCALE, SEED = 16, 5, 3.0, 7
PROMPT = "a red apple, no more"


def images(data: Path) -> Tensor:
    files = sorted(data.glob("*.png"))
    pictures = np.stack([np.asarray(Image.open(f).resize((32, 32))) for f in files])
    return torch.from_numpy(pictures).permute(0, 3, 1, 2) / 127.5 - 1


def make_peer(family: str, world: Path, root: Path) -> diffusers.StableDiffusionPipeline:
    """Make a model with random weights, whose latents are scaled for the images of `world`."""
    first = family == "SD 1.x"
    vae = compvis.make_autoencoder()
    with torch.no_grad():
        spread = vae.encode(images(world / "data")).latent_dist.sample().std().item()
    vae.register_to_config(scaling_factor=1 / spread)
    save_tokenizer(clip_tokenizer(77, **({} if first else {"pad": "!"})), root / "tokenizer")
    settings = DDIM if not first else PNDM
    kind = diffusers.PNDMScheduler if first else diffusers.DDIMScheduler
    return diffusers.StableDiffusionPipeline(
        vae=vae,
        unet=compvis.make_unet(family, cross_attention_dim=64),
        text_encoder=compvis.make_text_encoder(act="quick_gelu" if first else "gelu"),
        tokenizer=CLIPTokenizer.from_pretrained(root / "tokenizer"),
        scheduler=kind(**settings),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


@pytest.fixture(scope="module", params=FORMS)
def foreign(request, world, tmp_path_factory) -> tuple[str, Path]:
    root = tmp_path_factory.mktemp("foreign")
    peer = make_peer(request.param, world, root)
    if "variant" in FORMS[request.param]:
        peer.to(torch.float16)
    peer.save_pretrained(root / "model", **FORMS[request.param])
    return request.param, root / "model"


def opened(folder: Path, **options: Any) -> diffusers.StableDiffusionPipeline:
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(
        folder, low_cpu_mem_usage=False, **options
    ).to(torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def drawn(theirs: diffusers.StableDiffusionPipeline) -> np.ndarray:
    """Generate with diffusers' DDIM at the same times as ours; in gray levels of 255."""
    settings = {"timestep_spacing": "trailing", "set_alpha_to_one": True, "clip_sample": False}
    theirs.scheduler = diffusers.DDIMScheduler.from_config(theirs.scheduler.config, **settings)
    shape = 1, 4, SIDE // 2, SIDE // 2
    latents = torch.randn(shape, generator=torch.Generator().manual_seed(SEED))
    options = {"num_inference_steps": STEPS, "guidance_scale": SCALE, "height": SIDE, "width": SIDE}
    return theirs(PROMPT, latents=latents, output_type="np", **options).images[0] * 255


def sampled(model: Path, out: Path) -> np.ndarray:
    flags = {"model": model, "out": out, "sampler": "ddim", "steps": STEPS, "seed": SEED}
    flags |= {"guidance-scale": SCALE, "height": SIDE, "width": SIDE, "device": "cpu"}
    sample.main([PROMPT, *(str(x) for name, value in flags.items() for x in (f"--{name}", value))])
    return pixels(Image.open(out / "00000.png"))


def test_sample_gives_the_image_of_diffusers(foreign, tmp_path):
    family, folder = foreign
    variant = FORMS[family].get("variant")
    names = [path.name for path in folder.rglob("*.safetensors")]
    assert all(("fp16" in name) == (variant is not None) for name in names)
    assert any("-of-" in name for name in names) == (variant is not None)
    expected = drawn(opened(folder, variant=variant))
    assert np.abs(sampled(folder, tmp_path / "1") - expected).max() <= 1
    for format, name in (("diffusers", "model"), ("single-file", "model.safetensors")):
        export.main([str(folder), str(tmp_path / name), "--format", format])
    assert np.abs(drawn(opened(tmp_path / "model")) - expected).max() <= 1
    # In the file the latents' scale is folded in.
    assert np.abs(sampled(tmp_path / "model.safetensors", tmp_path / "2") - expected).max() <= 1


@pytest.mark.parametrize(
    "foreign", ["SD 1.x", pytest.param("SD 2.x", marks=pytest.mark.slow)], indirect=True
)
def test_trainings_start_from_its_components(foreign, world, tmp_path):
    _, folder = foreign
    command = mistakes.command
    parts = ("--vae", folder, "--text-encoder", folder)
    train_ldm.main(command(train_ldm, world, tmp_path / "ldm", *parts))
    ours, theirs = TextToImage.load(tmp_path / "ldm"), TextToImage.load(folder)
    assert ours.autoencoder.sha256 == theirs.autoencoder.sha256
    assert ours.autoencoder.config == theirs.autoencoder.config
    assert ours.text_encoder.sha256 == theirs.text_encoder.sha256
    assert ours.text_encoder.tokenizer == theirs.text_encoder.tokenizer
    train_vae.main(command(train_vae, world, tmp_path / "vae", "--init-from", folder))
    trained = Autoencoder.load(tmp_path / "vae")
    assert trained.config.block_out_channels == theirs.autoencoder.config.block_out_channels
    assert trained.config.scaling_factor == 1.0  # folded in, as of every autoencoder trained here
