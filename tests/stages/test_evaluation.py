"""Evaluations and previews of the trainings, and what they print before they begin."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import sample
import train_clip
import train_ldm
import train_vae
from autoencoder import PRESETS, Autoencoder
from foundation.files import read_json
from ldm import TextToImage
from stages.evaluation.reconstruction import ReconstructionEvaluator, find_perceptual_distance
from tests.helpers.bad_calls import command, tree
from training.weights.best import FILE

CPU = torch.device("cpu")


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Path:
    """torch.hub's folder, without weights in it."""
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(folder.parent))
    return folder


def test_lpips_is_measured_only_if_its_weights_are_downloaded(hub, monkeypatch):
    nets = []
    monkeypatch.setattr(
        "autoencoder.training.lpips.PerceptualDistance", lambda net, device: nets.append(net)
    )
    find_perceptual_distance(64, CPU)
    assert not nets
    (hub / "vgg16-397923af.pth").touch()
    find_perceptual_distance(16, CPU)  # too small for LPIPS
    assert not nets
    find_perceptual_distance(64, CPU)
    assert nets == ["vgg"]


def test_an_evaluation_does_not_depend_on_the_batch_size():
    torch.manual_seed(0)
    autoencoder = Autoencoder(PRESETS["tiny-32"]).eval()
    pixels = torch.randint(256, (5, 3, 32, 32), dtype=torch.uint8)

    def distance(images, others):
        return (images - others).abs().mean(dim=(1, 2, 3))

    whole, in_parts = (
        ReconstructionEvaluator(pixels, size, CPU, distance).evaluate(autoencoder)
        for size in (5, 2)
    )
    assert whole.metrics == pytest.approx(in_parts.metrics, rel=1e-4)
    names = {"psnr", "ssim", "held_out_lpips", *(f"kl/channel{k}" for k in range(4))}
    assert whole.metrics.keys() == names
    assert len(whole.comparison) == 15 and torch.equal(whole.comparison[3], pixels[1])
    difference = whole.comparison[4].float() - pixels[1].float()
    shown = whole.comparison[5].float()
    assert ((shown - 127.5) * 2 - difference).abs().max() <= 2


def test_stage_1_prints_metrics_and_verdicts(world, tmp_path, capsys):
    flags = ("--evaluate-every", 1, "--save-every", 1)
    train_vae.main(command(train_vae, world, tmp_path / "run", *flags))
    text = capsys.readouterr().out
    assert re.search(r"step 2: psnr \S+  ssim \S+  kl/channel0", text)
    assert "step 2: latent channels: " in text
    assert "verdict/channels" in (tmp_path / "run" / "metrics.jsonl").read_text()
    check_best(tmp_path / "run", "psnr", Autoencoder.load(tmp_path / "run" / "best"), ("quant",))


def check_best(run: Path, metric: str, model: torch.nn.Module, folded: tuple[str, ...]) -> None:
    """Check that best/ holds the averaged weights of the step with the best number.

    folded: parts of names of weights that statistics were folded into.
    """
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    numbers = {line["step"]: line[metric] for line in lines if metric in line}
    choose = max if metric == "psnr" else min
    step = choose(sorted(numbers), key=numbers.__getitem__)
    best = read_json(run / "best" / FILE)
    assert best == {"metric": metric, "value": numbers[step], "step": step}
    weights = load_file(run / "state" / f"step-{step:07d}" / "ema.safetensors")
    for name, weight in model.state_dict().items():
        if not any(part in name for part in folded):
            assert torch.equal(weight, weights[f"/{name}"]), name


def test_previews_of_stage_2_are_the_pictures_of_sample(world, tmp_path):
    """Averaged weights above, live ones below."""
    run = tmp_path / "run"
    flags = ("--warmup", 0, "--preview-prompts", "red disk", "--evaluate-every", 1)
    train_ldm.main(command(train_ldm, world, run, *flags, "--save-every", 1))
    check_best(run, "val", TextToImage.load(run / "best").unet, ())
    sample.main(["red disk", "--model", str(run), "--out", str(tmp_path / "out")])
    preview = pixels(run / "previews" / "step-0000002.png")
    upper, lower = preview[2:34, 2:34], preview[36:68, 2:34]
    assert np.array_equal(upper, pixels(tmp_path / "out" / "00000.png"))
    live = TextToImage.load(run)
    weights = load_file(run / "state" / "step-0000002" / "unet.safetensors")
    live.unet.load_state_dict({name.removeprefix("/"): w for name, w in weights.items()})
    assert np.array_equal(lower, np.asarray(live(["red disk"])[0]))
    assert not np.array_equal(upper, lower)


def pixels(file: Path) -> np.ndarray:
    with Image.open(file) as picture:
        return np.array(picture)


# The plan, and what is tried before a training.


@pytest.mark.parametrize("script", [train_clip, train_vae, train_ldm], ids=lambda s: s.__name__)
def test_a_dry_run_prints_the_memory(world, tmp_path, capsys, script):
    script.main(command(script, world, tmp_path / "run", "--dry-run"))
    text = capsys.readouterr().out
    assert re.search(r"memory .*[\d.]+ MB \(weights .*activations", text)
    assert not tree(tmp_path)


def test_a_dry_run_prints_half_life_and_disk_space(world, tmp_path, capsys):
    flags = ("--dry-run", "--ema-halflife", 10, "--averages-every", 1)
    train_vae.main(command(train_vae, world, tmp_path / "run", *flags))
    text = capsys.readouterr().out
    assert re.search(r"\b10 images, 2\.5 steps.*\b2 files of 0\.935 MB, 1\.87 MB", text)


def test_without_held_out_images_there_is_no_best_model(world, tmp_path, capsys):
    train_vae.main(command(train_vae, world, tmp_path / "run", "--dry-run", "--held-out", 0))
    text = capsys.readouterr().out
    assert "no best/ is kept" in text and "best model" not in text


@pytest.mark.parametrize(
    "script",
    [
        pytest.param(train_clip, marks=pytest.mark.slow),
        train_vae,
        pytest.param(train_ldm, marks=pytest.mark.slow),
    ],
    ids=lambda s: s.__name__,
)
def test_find_batch_size_prints_a_size_and_writes_nothing(
    world, tmp_path, capsys, monkeypatch, script
):
    def one_second(step, device, clock):  # so that speed does not decide
        step(0)
        return [1.0]

    monkeypatch.setattr("training.tools.find_batch_size.step_times", one_second)
    script.main(command(script, world, tmp_path / "run", "--find-batch-size"))
    text = capsys.readouterr().out
    assert re.search(r"batch of 8: 8 images/s, memory", text) and "batch of 16" not in text
    flags = "--batch-size 8;.* 4" if script is train_clip else "--batch-size 4 --accumulate 1,"
    assert re.search(rf"\b11 images.*{flags}", text)
    assert not tree(tmp_path)
