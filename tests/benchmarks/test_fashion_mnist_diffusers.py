"""benchmarks/fashion_mnist_diffusers.py: the same architectures; slow: it resumes, and opens."""

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from autoencoder import PRESETS, Autoencoder
from ldm import TextToImage
from ldm.pipeline.sampling import Sampling

ROOT = Path(__file__).parents[2]
PROGRAM = "benchmarks/fashion_mnist_diffusers.py"
STATES = ("autoencoder", "unet")


def test_the_autoencoder_has_the_weights_of_the_preset():
    module = pytest.importorskip("benchmarks.fashion_mnist_diffusers")
    config = PRESETS[module.PRESET]
    with torch.device("meta"):
        ours = Autoencoder(config).state_dict()
        theirs = module.AutoencoderKL(**module.diffusers_fields(asdict(config))).state_dict()
    assert {name: tuple(one.shape) for name, one in theirs.items()} == {
        name: tuple(one.shape) for name, one in ours.items()
    }


@pytest.mark.slow
def test_it_resumes_and_its_model_opens(world, tmp_path):
    random = np.random.default_rng(0)
    folder, out = tmp_path / "data", tmp_path / "out"
    folder.mkdir()
    with (folder / "metadata.jsonl").open("w") as metadata:
        for k in range(60):
            pixels = random.integers(0, 256, (32, 32), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{k}.png")
            metadata.write(json.dumps({"file_name": f"{k}.png", "text": f"kind {k % 3}"}) + "\n")
    steps = []
    for minutes in ("0.05", "0.1"):
        words = ["--data", folder, "--clip", world / "clip", "--out", out, "--batch-size", "2"]
        words += ["--autoencoder-minutes", minutes, "--unet-minutes", minutes]
        subprocess.run([sys.executable, PROGRAM, *map(str, words)], cwd=ROOT, check=True)
        states = [torch.load(out / f"{name}.pt", weights_only=True) for name in STATES]
        steps.append([state["step"] for state in states])
    assert all(0 < before < after for before, after in zip(*steps, strict=True))
    pipeline = TextToImage.load(out / "model")
    assert (pipeline.size, pipeline.image_channels) == (32, 1)
    (picture,) = pipeline(["kind 1"], sampling=Sampling(steps=2), seed=[0])
    assert picture.size == (32, 32) and picture.mode == "L"
