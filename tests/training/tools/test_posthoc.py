"""Averages that a training stored, and models of other lengths reconstructed from them."""

import json
import math
import re
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import sample
import train_ldm
import train_vae
from autoencoder import Autoencoder
from autoencoder.io import read_provenance
from dataset.images.transform import ImageTransform, normalize_pixels
from dataset.loader import read_pixels
from ldm import TextToImage
from ldm.unet import UNet
from stages.averages import AutoencoderAverages
from tests.helpers.bad_calls import CONFIGS, TRAINERS, command, unchanged
from tests.helpers.short_runs import killed_in_step
from training.cli import run_main
from training.config_json import from_json, to_json
from training.tools import posthoc
from training.weights.posthoc_ema import stored_steps

STORING = ("--steps", 6, "--averages-every", 2, "--no-averages-half", "--warmup", 1)


@pytest.fixture(scope="module")
def runs(world, tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    for script in (train_vae, train_ldm):
        script.main(command(script, world, root / script.__name__, *STORING))
    return root


def tracked(run: Path, sigma_rel: str) -> dict[str, torch.Tensor]:
    """Return one of the two averages at the end of the run."""
    weights = load_file(run / "averages" / "step-0000006.safetensors")
    prefix = f"{sigma_rel}/"
    return {k.removeprefix(prefix): w for k, w in weights.items() if k.startswith(prefix)}


@pytest.mark.parametrize("name", ["train_vae", "train_ldm"])
def test_the_best_length_is_written_with_its_curve(runs, tmp_path, capsys, name):
    out, given = tmp_path / "out", ["--sigma-rel", "0.05", "0.08", "0.10"]
    with unchanged(runs):
        posthoc.main([str(runs / name), *given, "--out", str(out), "--device", "cpu"])
    scores = json.loads((out / "scores.json").read_text())
    by_length = scores["by_sigma_rel"]
    best = (max if name == "train_vae" else min)(by_length, key=by_length.get)
    assert str(scores["sigma_rel"]) == best and by_length.keys() == {"0.05", "0.08", "0.1"}
    assert f"best at {best}" in (out / "curve.svg").read_text()
    text = capsys.readouterr().out
    assert f"sigma_rel {best} is in {out / 'model'}" in text


def test_a_stored_length_of_stage_2_is_written_and_can_be_sampled(runs, tmp_path):
    run, out = runs / "train_ldm", tmp_path / "out"
    posthoc.main([str(run), "--sigma-rel", "0.1", "--out", str(out), "--device", "cpu"])
    written = UNet.load(out / "model" / "unet").state_dict()
    for name, weight in tracked(run, "0.1").items():
        torch.testing.assert_close(written[name], weight, rtol=1e-5, atol=1e-6)
    loaded = TextToImage.load(out)
    assert loaded.autoencoder.sha256 == TextToImage.load(run).autoencoder.sha256
    sample.main(["red", "--model", str(out), "--steps", "1", "--out", str(tmp_path / "pictures")])
    with Image.open(tmp_path / "pictures" / "00000.png") as picture:
        assert picture.size == (32, 32)
    facts = json.loads((out / "model" / "latentsmith.json").read_text())["provenance"]
    assert facts["average"]["sigma_rel"] == 0.1 and facts["average"]["step"] == 6


def test_an_autoencoder_of_another_length_has_standardized_latents(world, runs, tmp_path):
    run, out = runs / "train_vae", tmp_path / "out"
    posthoc.main([str(run), "--sigma-rel", "0.1", "--out", str(out), "--device", "cpu"])
    autoencoder = Autoencoder.load(out)
    facts = read_provenance(out)
    assert facts["average"]["sigma_rel"] == 0.1
    assert len(facts["latent_statistics_folded_in"]["mean"]) == 4
    conv = tracked(run, "0.1")["encoder.conv_in.weight"]
    torch.testing.assert_close(
        autoencoder.encoder.conv_in.weight.detach(), conv, rtol=1e-5, atol=1e-6
    )
    paths = sorted((world / "data").glob("*.png"))
    images = normalize_pixels(read_pixels(paths, ImageTransform(32, 3)))
    with torch.no_grad():
        posterior = autoencoder.encode(images)
    variance = posterior.mean.var(dim=(0, 2, 3)) + posterior.std.square().mean(dim=(0, 2, 3))
    torch.testing.assert_close(variance, torch.ones(4), rtol=0.5, atol=0)  # of a sample of these


def test_averages_are_resumed_with_the_run(world, runs, tmp_path):
    given = command(train_vae, world, tmp_path / "run", *STORING, "--save-every", 3)
    with killed_in_step(TRAINERS[train_vae], 5):
        train_vae.main(given)
    train_vae.main(given)
    assert stored_steps(tmp_path / "run" / "averages") == [2, 4, 6]
    for sigma_rel in ("0.05", "0.1"):
        straight, resumed = (
            tracked(run, sigma_rel) for run in (runs / "train_vae", tmp_path / "run")
        )
        assert all(torch.equal(straight[name], resumed[name]) for name in straight)


@pytest.mark.parametrize(
    ("flags", "pattern"),
    [
        (["--sigma-rel", "0.5"], r"0\.5.* 0\.28"),
        (["--step", "3"], r"--step 3 .*\[2, 4, 6\]"),
    ],
)
def test_a_length_or_step_that_cannot_be_reconstructed_is_refused(
    runs, tmp_path, capsys, flags, pattern
):
    out = tmp_path / "out"
    check_refused(capsys, [str(runs / "train_vae"), *flags, "--out", str(out)], pattern)
    assert not (out / "model").exists()


def test_a_run_without_averages_is_refused(world, capsys):
    check_refused(capsys, [str(world / "vae")], "--averages-every")


def check_refused(capsys, arguments: list[str], pattern: str) -> None:
    with pytest.raises(SystemExit) as stopped:
        run_main(lambda: posthoc.main(arguments))
    assert stopped.value.code == 2
    text = capsys.readouterr().err
    assert re.search(pattern, text), text


@pytest.mark.parametrize("script", [train_vae, train_ldm], ids=["vae", "ldm"])
def test_the_ema_halflife_of_presets_is_a_fiftieth_of_the_run(script):
    """The numbers in the documentation were measured with it."""
    for name, preset in script.PRESETS.items():
        needed = {"data": Path("d"), "out": Path("o"), "preset": name}
        if script is train_ldm:
            needed |= {"vae": Path("v"), "text_encoder": "t"}
        config = CONFIGS[script](**needed, **preset)
        assert config.ema_halflife == 0.02 * config.steps * config.batch_size, name
        assert from_json(CONFIGS[script], json.loads(json.dumps(to_json(config)))) == config


def test_a_training_that_diverged_has_no_best_length(runs, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(AutoencoderAverages, "score", lambda self, weights: math.nan)
    check_refused(capsys, [str(runs / "train_vae"), "--out", str(tmp_path / "out")], "diverged")
    assert not (tmp_path / "out" / "model").exists()
