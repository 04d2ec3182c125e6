"""From files of 16 bits, floats and five channels through both stages to files of the same kind."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import sample
import train_ldm
import train_vae
from autoencoder import Autoencoder
from autoencoder.io import read_provenance
from dataset.images.decode import read_raster
from dataset.images.pixel_format import recorded_format
from dataset.images.transform import ImageTransform
from dataset.images.write import encode_png
from tests.helpers.snippets import python_blocks
from tests.helpers.snippets import run as snippet
from training.cli import run_main

ROOT = Path(__file__).parents[2]
FAST = ("--preset", "tiny-32", "--steps", 2, "--batch-size", 4, "--device", "cpu", "--warmup", 1,
        "--held-out", 0.2)  # fmt: skip


def ramps(channels: int, top: float) -> list[np.ndarray]:
    """Ten pictures (h, w, c) of numbers from 0 to `top`."""
    ramp = np.add.outer(np.linspace(0, 1, 32), np.linspace(0, 1, 32))[..., None] / 2
    shares = [(k + 1) / 10 * np.linspace(1, 0.5, channels) for k in range(10)]
    return [ramp * share * top for share in shares]


@pytest.fixture
def sixteen(tmp_path):
    folder = tmp_path / "sixteen"
    folder.mkdir()
    for k, values in enumerate(ramps(3, 60_000)):
        (folder / f"a ramp {k}.png").write_bytes(encode_png(values.astype(np.uint16)))
    return folder


@pytest.fixture
def five(tmp_path):
    folder = tmp_path / "five"
    folder.mkdir()
    for k, values in enumerate(ramps(5, 900)):
        np.save(folder / f"a ramp {k}.npy", values.astype(np.float32).transpose(2, 0, 1) - 100)
    return folder


def run(script, *flags) -> None:
    script.main([str(flag) for flag in flags])


def refused(script, capsys, *flags) -> str:
    with pytest.raises(SystemExit):
        run_main(lambda: run(script, *flags))
    return capsys.readouterr().err


def test_16_bits_through_both_stages_and_back(world, sixteen, tmp_path, monkeypatch, capsys):
    vae, ldm, out = (tmp_path / name for name in ("vae", "ldm", "out"))
    run(train_vae, "--data", sixteen, "--out", vae, *FAST)
    pixels = recorded_format(read_provenance(vae))
    assert (pixels.dtype, pixels.low, pixels.high) == ("uint16", 0, 65535)
    lines = map(json.loads, (vae / "metrics.jsonl").read_text().splitlines())
    psnr = next(line["psnr"] for line in lines if "psnr" in line)
    autoencoder, held_out = Autoencoder.load(vae), sorted(sixteen.glob("*.png"))
    images = [ImageTransform(32, format=pixels)(path) for path in held_out]
    images = torch.from_numpy(np.stack(images))
    with torch.no_grad():
        again = autoencoder.decode(autoencoder.encode(images).mode()).clamp(-1, 1)
    error = (again - images).square().mean(dim=(1, 2, 3))
    ours = 10 * torch.log10(4 / error)
    assert ours.min() - 3 < psnr < ours.max() + 3
    text = ("--text-encoder", world / "clip", "--preview-prompts", "a cat")
    run(train_ldm, "--data", sixteen, "--out", ldm, "--vae", vae, *text, *FAST)
    run(sample, "a ramp", "--model", ldm, "-n", 2, "--steps", 1, "--out", out, "--device", "cpu")
    names = {"00000.png", "00001.png", "grid-0000.png"}
    assert {path.name for path in out.iterdir()} == names
    raster = read_raster(out / "00001.png")
    assert raster.dtype == "uint16" and raster.values.shape == (32, 32, 3)
    assert (raster.values % 257 != 0).any()  # more than 8 bits
    with Image.open(out / "00001.png") as image:
        assert json.loads(image.text["latentsmith"])["seed"] == 1
    again = ("--reproduce", out / "00001.png", "--out", tmp_path / "again", "--device", "cpu")
    run(sample, *again, "--model", ldm)  # ends with an error unless the pixels are the same
    assert (read_raster(tmp_path / "again" / "00000.png").values == raster.values).all()
    flags = ("a ramp", "--model", ldm, "--init-image", held_out[0], "--out", out)
    assert "8 bits" in refused(sample, capsys, *flags, "--device", "cpu")

    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "scans").symlink_to(sixteen)
    (tmp_path / "runs").symlink_to(tmp_path)
    monkeypatch.chdir(tmp_path)
    (program,) = python_blocks((ROOT / "docs" / "images.md").read_text(encoding="utf-8"))
    snippet(program)
    assert read_raster(tmp_path / "again.png").dtype == "uint16"


@pytest.mark.slow
def test_five_channels_of_floats_through_both_stages_and_back(world, five, tmp_path, capsys):
    vae, ldm, out = (tmp_path / name for name in ("vae", "ldm", "out"))
    flags = ("--data", five, "--out", vae, "--channels", 5, *FAST)
    assert "LOW HIGH" in refused(train_vae, capsys, *flags)
    wrong = ("--data", five, "--out", vae, "--value-range", -100, 800, *FAST)
    assert "3 channels" in refused(train_vae, capsys, *wrong)
    assert not vae.exists()
    run(train_vae, *flags, "--value-range", -100, 700, "--layout", "chw", "--dry-run")
    assert "exceed -100 to 700" in capsys.readouterr().out
    run(train_vae, *flags, "--value-range", -100, 800, "--layout", "chw")
    assert "-100 became -1, 800 became 1" in (vae / "model" / "README.md").read_text()
    text = ("--text-encoder", world / "clip", "--preview-prompts", "a cat")
    run(train_ldm, "--data", five, "--out", ldm, "--vae", vae, *text, *FAST)
    run(sample, "a ramp", "--model", ldm, "--steps", 1, "--out", out, "--device", "cpu")
    values = np.load(out / "00000.npy")
    assert values.shape == (5, 32, 32) and values.dtype == np.float32
    assert values.min() >= -100 and values.max() <= 800 and np.abs(values).max() > 1.5
    again = ("--data", five, "--out", tmp_path / "again", "--channels", 5, *FAST, "--dry-run")
    run(train_vae, *again, "--init-from", vae, "--value-range", 0, 800)
    output = capsys.readouterr().out
    assert "other numbers: float32, -100 to 800; these are float32, 0 to 800" in output
    made_by = json.loads((out / "00000.json").read_text())
    assert json.loads(made_by["latentsmith"])["prompt"] == "a ramp"
    other = tmp_path / "other"
    again = ("--reproduce", out / "00000.npy", "--model", ldm)
    run(sample, *again, "--out", other, "--device", "cpu")
    assert np.array_equal(np.load(other / "00000.npy"), values)


def test_another_depth_than_the_autoencoders_is_refused(world, five, tmp_path, capsys):
    flags = ("--data", five, "--out", tmp_path / "ldm", "--vae", world / "vae", *FAST)
    message = refused(train_ldm, capsys, *flags, "--text-encoder", world / "clip")
    assert re.search(r"float32.*\b8-bit\b", message)


def test_mixed_depths_end_with_one_message(sixteen, tmp_path, capsys):
    Image.new("RGB", (32, 32)).save(sixteen / "shallow one.png")
    message = refused(train_vae, capsys, "--data", sixteen, "--out", tmp_path / "vae", *FAST)
    assert re.search(r"\b10 of uint16", message)
    assert re.search(r"\b1 of uint8 .*shallow one\.png", message)
    assert not (tmp_path / "vae").exists()
