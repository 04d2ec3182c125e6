"""Stage 1 from the command line, on a dozen generated images."""

import json
import re

import numpy as np
import pytest
import torch
from PIL import Image

import train_vae
from autoencoder import Autoencoder
from autoencoder.io import read_provenance
from dataset.images.transform import ImageTransform, normalize_pixels
from dataset.loader import read_pixels
from foundation.errors import UserError
from training.cli import run_main

FAST = ["--preset", "tiny-32", "--steps", "6", "--batch-size", "4", "--evaluate-every", "3",
        "--save-every", "3", "--device", "cpu", "--held-out", "0.2", "--warmup", "1"]  # fmt: skip
ADVERSARY = ["--adversarial-weight", "0.5", "--discriminator-start", "1", "--adversarial-start",
             "0.4", "--discriminator-width", "16", "--discriminator-layers", "2"]  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Colored disks; without captions."""
    folder = tmp_path_factory.mktemp("data")
    y, x = np.mgrid[:40, :48]
    for k in range(12):
        pixels = np.full((40, 48, 3), 255, np.uint8)
        pixels[(y - 20) ** 2 + (x - 24) ** 2 < (6 + k) ** 2] = [20 * k, 255 - 20 * k, 90]
        Image.fromarray(pixels).save(folder / f"{k:02d}.png")
    return folder


def train(data, out, *flags) -> dict[int, dict]:
    """Run the script; return its metrics by step."""
    train_vae.main(["--data", str(data), "--out", str(out), *FAST, *flags])
    lines = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    metrics = {}
    for line in lines:
        metrics.setdefault(line["step"], {}).update(line)
    return metrics


def test_a_run_writes_an_autoencoder_with_normalized_latents(data, tmp_path, capsys):
    metrics = train(data, tmp_path / "run", *ADVERSARY)
    assert {"l2", "kl_per_element", "adversarial", "adaptive_weight", "psnr"} <= metrics[6].keys()
    assert "discriminator" in capsys.readouterr().out
    for step in (3, 6):
        with Image.open(tmp_path / "run" / "previews" / f"step-{step:07d}.png") as preview:
            assert preview.width > 3 * 32
    autoencoder = Autoencoder.load(tmp_path / "run")
    assert autoencoder.config.scaling_factor == 1
    facts = read_provenance(tmp_path / "run")
    assert facts["config"]["steps"] == 6
    assert facts["latent_statistics_folded_in"]["images"] % 4 == 0


def test_latents_of_the_training_images_are_standardized(data, tmp_path):
    train(data, tmp_path / "run", "--held-out", "0", "--batch-size", "12", "--channels", "1")
    autoencoder = Autoencoder.load(tmp_path / "run")
    images = read_pixels(sorted(data.glob("*.png")), ImageTransform(32, 1))
    with torch.no_grad():
        posterior = autoencoder.encode(normalize_pixels(images))
    variance = posterior.mean.var(dim=(0, 2, 3)) + posterior.std.square().mean(dim=(0, 2, 3))
    torch.testing.assert_close(variance, torch.ones(4), rtol=1e-3, atol=0)
    assert posterior.mean.mean(dim=(0, 2, 3)).abs().max() < 1e-4


def test_a_training_begins_with_another_autoencoder(data, tmp_path, capsys):
    first = [train(data, tmp_path / "first", "--steps", "30")[30]["psnr"]]
    config = tmp_path / "first" / "model" / "config.json"
    edited = json.loads(config.read_text()) | {"scaling_factor": 0.5}  # as a foreign one may have
    config.write_text(json.dumps(edited))
    more = ["--init-from", str(tmp_path / "first"), "--learning-rate", "1e-9"]
    assert train(data, tmp_path / "second", *more)[6]["psnr"] == pytest.approx(first[0], abs=0.3)


def test_factor_and_latent_channels_choose_the_architecture(data, tmp_path):
    train(data, tmp_path / "run", "--factor", "8", "--latent-channels", "6", "--steps", "1")
    autoencoder = Autoencoder.load(tmp_path / "run")
    assert (autoencoder.factor, autoencoder.config.latent_channels) == (8, 6)
    flags = ["--init-from", str(tmp_path / "run"), "--factor"]
    with pytest.raises(UserError, match=r"factor 8.*factor 4"):
        train(data, tmp_path / "other", *flags, "4")
    train(data, tmp_path / "other", *flags, "8", "--steps", "1")


def test_accumulation_lowers_the_memory_that_a_dry_run_says(data, tmp_path, capsys):
    memory = []
    for parts in ("1", "4"):
        out = str(tmp_path / "run")
        flags = ["--batch-size", "4", "--accumulate", parts, "--dry-run"]
        train_vae.main(["--data", str(data), "--out", out, *FAST, *flags])
        memory.append(float(re.search(r"activations ([0-9.]+) MB", capsys.readouterr().out)[1]))
    assert memory[0] / memory[1] > 2.5  # in parts there are gradients from the first one on


def test_dry_run_writes_nothing(data, tmp_path, capsys):
    train_vae.main(["--data", str(data), "--out", str(tmp_path / "run"), *FAST, "--dry-run"])
    assert re.search(r"3x32x32 to latents of 4x8x8; \d+ images", capsys.readouterr().out)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--size", "30"], "--size 30 .*--size 28"),
        (["--batch-size", "64"], r"\b64\b"),
        (["--preset", "tiny-23"], "'tiny-23'.*'tiny-32'"),
        (
            ["--adversarial-weight", "1", "--adversarial-start", "0"],
            "adversarial_start|discriminator",
        ),
        (["--perceptual", "alex"], "perceptual"),
        (["--perceptual", "alex", "--size", "16"], r"LPIPS.*\b32\b"),
        (["--adversarial-weight", "1", "--size", "16"], r"\b3\b.*\b24\b"),
    ],
)
def test_mistakes_end_with_one_message(data, tmp_path, capsys, monkeypatch, flags, message):
    def no_network(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(torch.hub, "urlopen", no_network)
    given = ["--data", str(data), "--out", str(tmp_path / "run"), *FAST, *flags]
    with pytest.raises(SystemExit) as stopped:
        run_main(lambda: train_vae.main(given))
    assert stopped.value.code == 2
    assert re.search(message, capsys.readouterr().err.replace("\n", " "))
    assert not (tmp_path / "run" / "state").exists()
