"""Model folders that are missing, damaged, unfinished or of another kind, and missing downloads."""

import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants

import evaluate
import sample
import train_ldm
import train_vae

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.mark.parametrize(
    ("flag", "name", "pattern"),
    [
        ("--vae", "nowhere", r"/nowhere\b"),
        ("--vae", "empty", r"/empty\b"),
        ("--vae", "unfinished", r"/unfinished\b"),
        ("--vae", "clip", rf"/clip\b.*{WEIGHTS}"),
        ("--vae", "ldm/model/unet", "'UNet2DConditionModel'.*'AutoencoderKL'"),
        ("--text-encoder", "nowhere", r"/nowhere\b.*NAME:PRETRAINED"),
        ("--text-encoder", "empty", r"/empty\b.*train_clip\.py"),
        ("--text-encoder", "unfinished", r"/unfinished\b"),
        ("--text-encoder", "vae", r"/vae\b.*train_clip\.py"),
    ],
)
def test_parts_of_another_kind_or_unfinished(refused, world, flag, name, pattern):
    refused(train_ldm, pattern, flag, world / name)


CLIP_WEIGHTS = "text_encoder/model.safetensors"
A_UNET, A_VAE = "the U-Net of", "an AutoencoderKL with latents of 4 channels"


@pytest.mark.parametrize(
    ("script", "flag", "run", "file", "other", "content"),
    [
        (train_ldm, "--vae", "vae", WEIGHTS, f"ldm/model/unet/{WEIGHTS}", A_UNET),
        (train_ldm, "--text-encoder", "clip", CLIP_WEIGHTS, f"vae/model/{WEIGHTS}", A_VAE),
        (train_vae, "--init-from", "vae", WEIGHTS, f"clip/model/{CLIP_WEIGHTS}", "a text encoder"),
        (sample, "--model", "ldm", f"unet/{WEIGHTS}", f"vae/model/{WEIGHTS}", A_VAE),
        (sample, "--model", "ldm", f"vae/{WEIGHTS}", f"ldm/model/unet/{WEIGHTS}", A_UNET),
    ],
)
def test_weights_of_another_part_are_named(
    refused, world, tmp_path_factory, script, flag, run, file, other, content
):
    copy = tmp_path_factory.mktemp("copy") / run
    shutil.copytree(world / run, copy)
    shutil.copy(world / other, copy / "model" / file)
    pattern = rf"{file} .*\(\d.*{content}"
    refused(script, pattern, flag, copy)


@pytest.mark.parametrize(
    ("name", "pattern"),
    [
        ("nowhere", r"/nowhere\b.*model_index\.json"),
        ("empty", r"/empty\b"),
        ("unfinished", r"/unfinished\b"),
        ("vae", "AutoencoderKL"),
        ("clip", "CLIPTextModel"),
    ],
)
def test_models_of_another_kind_or_unfinished(refused, world, name, pattern):
    refused(sample, pattern, "--model", world / name)
    refused(evaluate, pattern, "--model", world / name)


def test_a_judge_of_another_kind(refused, world):
    refused(evaluate, r"/vae\b.*train_clip\.py", "--judge", world / "vae")


def test_an_autoencoder_to_begin_with(refused, world):
    refused(train_vae, r"/nowhere\b", "--init-from", world / "nowhere")
    refused(train_vae, "--channels 3", "--init-from", world / "vae", "--channels", "1")


def damaged_copy(folder: Path, target: Path, file: str, cut: int = 100) -> Path:
    """A copy of a run whose `file` ends too early; without it if cut is 0."""
    shutil.copytree(folder, target)
    path = target / "model" / file
    content = path.read_bytes()
    path.unlink()
    if cut:
        path.write_bytes(content[:-cut])
    return target


@pytest.mark.parametrize(
    ("script", "flag", "run", "file"),
    [
        (train_ldm, "--vae", "vae", WEIGHTS),
        (train_ldm, "--vae", "vae", "config.json"),
        (train_ldm, "--text-encoder", "clip", "text_encoder/model.safetensors"),
        (train_vae, "--init-from", "vae", WEIGHTS),
        (evaluate, "--judge", "clip", "clip/open_clip_model.safetensors"),
        (sample, "--model", "ldm", f"unet/{WEIGHTS}"),
        (sample, "--model", "ldm", "unet/config.json"),
        (sample, "--model", "ldm", f"vae/{WEIGHTS}"),
        (sample, "--model", "ldm", "text_encoder/model.safetensors"),
        (sample, "--model", "ldm", "scheduler/scheduler_config.json"),
        (sample, "--model", "ldm", "latentsmith.json"),
    ],
)
def test_damaged_files_are_named(refused, world, tmp_path_factory, script, flag, run, file):
    copy = damaged_copy(world / run, tmp_path_factory.mktemp("copy") / run, file)
    refused(script, Path(file).name, flag, copy)


def test_missing_files_are_named(refused, world, tmp_path_factory):
    for file in ("unet/config.json", "vae/config.json", "scheduler/scheduler_config.json"):
        copy = tmp_path_factory.mktemp("copy") / "ldm"
        damaged_copy(world / "ldm", copy, file, cut=0)
        refused(sample, Path(file).name, "--model", copy)


def test_a_model_with_another_part_put_in_is_refused_with_both_hashes(
    refused, world, tmp_path_factory
):
    for part, source in (("vae", "other_vae/model"), ("text_encoder", "clip/model/text_encoder")):
        copy = tmp_path_factory.mktemp("copy") / "ldm"
        shutil.copytree(world / "ldm", copy)
        shutil.rmtree(copy / "model" / part)
        shutil.copytree(world / source, copy / "model" / part)
        refused(sample, r"[0-9a-f]{64}.*[0-9a-f]{64}", "--model", copy)


# What is not on this machine.


def test_clip_weights_without_a_network(refused, monkeypatch, tmp_path_factory):
    hub = tmp_path_factory.mktemp("hub")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(hub))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    pattern = rf"open_clip_model\.safetensors.*{hub}.*train_clip\.py"
    refused(train_ldm, pattern, "--text-encoder", "ViT-L-14-quickgelu:openai")
    refused(train_ldm, "'ViT-L-13'.*ViT-L-14", "--text-encoder", "ViT-L-13:openai")


def test_lpips_weights_without_a_network(refused, monkeypatch, tmp_path_factory):
    def no_network(*_, **__):
        raise OSError("no network")

    hub = tmp_path_factory.mktemp("hub")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(hub))
    monkeypatch.setattr(torch.hub, "urlopen", no_network)
    pattern = f"{hub}/checkpoints/vgg16"
    refused(train_vae, pattern, "--perceptual", "vgg")
