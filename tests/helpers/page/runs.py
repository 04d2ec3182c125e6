"""A folder of runs as the page finds it: models of all kinds, a LoRA, weak models, and links."""

import json
import shutil
from pathlib import Path

import torch

from interop.lora import WEIGHTS
from ldm import TextToImage
from stages.flags.diffusion import LORA_TARGETS
from stages.lora import add_adapter, save_lora
from tests.helpers.random_models import with_unet
from training.checkpoint import save_state


def make_page_runs(world: Path, runs: Path, outside: Path) -> None:
    """Write untrained runs that go with the model of `world`.

    outside: gets what links in `runs` lead to, which the page must not offer.
    """
    pipeline = TextToImage.load(world / "ldm")
    without_text = vars(pipeline.unet.config.without_text())
    kinds = {
        "plain": {},
        "restore": {"in_channels": 8},
        "inpaint": {"in_channels": 9},
        "upscale": {"in_channels": 7, "num_class_embeds": 1000},
        "smaller": {"layers_per_block": 1},
        "classes": {**without_text, "num_class_embeds": 3},
        "unconditional": without_text,
    }
    for name, changes in kinds.items():
        with_unet(pipeline, **changes).save(runs / name / "model")
    save_weak_state(pipeline, runs / "earlier")
    save_random_lora(pipeline, runs / "style" / "model")
    (runs / "files").mkdir()
    shutil.copy(runs / "style" / "model" / WEIGHTS, runs / "files" / "other.safetensors")
    shutil.copy(
        runs / "smaller" / "model" / "unet" / "diffusion_pytorch_model.safetensors",
        runs / "files" / "no-lora.safetensors",
    )
    (runs / "files" / "damaged.safetensors").write_bytes(b"lora_")
    shutil.copytree(runs / "style", outside / "style")
    shutil.copytree(runs / "earlier", outside / "earlier")
    (runs / "linked").symlink_to(outside / "style")
    (runs / "linked-too").symlink_to(outside / "earlier")
    (runs / "half-linked").mkdir()
    shutil.copy(outside / "earlier" / "config.json", runs / "half-linked")
    (runs / "half-linked" / "state").symlink_to(outside / "earlier" / "state")
    (runs / "half-linked" / "model").symlink_to(outside / "style" / "model")
    (runs / "files" / "linked.safetensors").symlink_to(outside / "style" / "model" / WEIGHTS)


def save_weak_state(pipeline: TextToImage, run: Path) -> None:
    """Write a run of train_ldm.py with a state of a worse model and nothing else."""
    weak = with_unet(pipeline)
    with torch.no_grad():
        for weight in weak.unet.parameters():
            weight.mul_(0.9)
    assert weak.text_encoder is not None
    hashes = {
        "vae_sha256": weak.autoencoder.sha256,
        "text_encoder_sha256": weak.text_encoder.sha256,
        "text_encoder": "clip",
    }
    run.mkdir(parents=True)
    (run / "config.json").write_text(json.dumps(hashes))
    save_state(run / "state", 7, {"ema": weak.unet})


def save_random_lora(pipeline: TextToImage, folder: Path) -> None:
    """Write a LoRA for the U-Net of a model, as it is saved, with random weights."""
    unet = with_unet(pipeline).unet
    add_adapter(unet, rank=2, alpha=4.0, targets=LORA_TARGETS)
    torch.manual_seed(3)
    for name, weight in unet.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(weight.data, std=0.3)
    save_lora(unet, folder, {"config": {"init_sha256": "abc"}})
