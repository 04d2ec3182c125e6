"""A folder of captioned shapes goes through three stages, and a picture follows its prompt."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.helpers.data.shapes_dataset import COLORS, SHAPES, make_shapes, name_shape

ROOT = Path(__file__).parents[2]
SHORTER = ("--steps", 600)
PROMPTS = [f"a {color} {shape}" for color in COLORS for shape in SHAPES]


def call(*command: object) -> str:
    """Runs a script as a user would, in a process of its own; returns what it printed."""
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """Data and the three runs, trained with the tiny preset in fewer steps."""
    root = tmp_path_factory.mktemp("runs")
    data = make_shapes(root / "data", count=900)
    call("check.py", data, "--size", 32, "--context-length", 16)
    shared = ("--data", data, "--preset", "tiny-32")
    call("train_clip.py", *shared, "--out", root / "clip")
    call("train_vae.py", *shared, "--steps", 500, "--out", root / "vae")
    parts = ("--vae", root / "vae", "--text-encoder", root / "clip")
    call("train_ldm.py", *shared, *parts, *SHORTER, "--out", root / "ldm")
    return root


def sample(runs: Path, out: Path, *arguments: object, seed: int = 0) -> list[Path]:
    call("sample.py", *arguments, "--model", runs / "ldm", "--out", out, "--seed", seed)
    return sorted(out.glob("[0-9]*.png"))


def test_pictures_follow_their_prompts(runs, tmp_path):
    """Four pictures of each of nine prompts: by chance 12 would have the color and 4 be right.

    Trainings of all steps, with and without bf16, gave 34 to 36 colors and 33 to 36 right ones;
    these gave 36 and 32, with two sets of seeds.
    """
    files = sample(runs, tmp_path / "samples", *PROMPTS * 4, "--guidance-scale", 2)
    named = [" ".join(name_shape(Image.open(file))) for file in files]
    asked = [prompt.removeprefix("a ") for prompt in PROMPTS * 4]
    colors = sum(a.split()[0] == n.split()[0] for a, n in zip(asked, named, strict=True))
    right = sum(a == n for a, n in zip(asked, named, strict=True))
    assert colors >= 30, list(zip(asked, named, strict=True))
    assert right >= 27, list(zip(asked, named, strict=True))


@pytest.mark.slow
def test_a_picture_depends_on_its_own_seed_alone(runs, tmp_path):
    together = sample(runs, tmp_path / "together", *PROMPTS[:5], seed=10)
    alone = sample(runs, tmp_path / "alone", PROMPTS[3], seed=13)
    assert Image.open(together[3]).tobytes() == Image.open(alone[0]).tobytes()
    made_by = json.loads(Image.open(together[3]).text["latentsmith"])
    assert made_by["prompt"] == PROMPTS[3] and made_by["seed"] == 13


@pytest.mark.slow
def test_older_pictures_are_never_overwritten(runs, tmp_path):
    first, second = sample(runs, tmp_path / "out", *PROMPTS[:2])
    first.unlink()
    files = sample(runs, tmp_path / "out", PROMPTS[0])
    assert [file.name for file in files] == ["00001.png", "00002.png"]
    assert second in files


@pytest.mark.slow
def test_a_finished_run_is_left_as_it_is(runs):
    weights = runs / "ldm" / "model" / "unet" / "diffusion_pytorch_model.safetensors"
    before = weights.read_bytes()
    parts = ("--vae", runs / "vae", "--text-encoder", runs / "clip", "--out", runs / "ldm")
    call("train_ldm.py", "--data", runs / "data", "--preset", "tiny-32", *SHORTER, *parts)
    assert weights.read_bytes() == before


@pytest.mark.slow
@pytest.mark.parametrize("task", ["inpaint", "upscale", "restore"])
def test_models_for_a_task_are_trained_and_do_it(runs, tmp_path, task):
    """Each is better than what it begins with, or than a filter."""
    data, own = (
        ("--data", runs / "data"),
        ("--task", task, "--steps", 400, "--out", tmp_path / "run"),
    )
    parts = ("--vae", runs / "vae", "--text-encoder", runs / "clip", "--init-from", runs / "ldm")
    call("train_ldm.py", *data, "--preset", "tiny-32", *parts, *own)
    flags = ["--images", 16, "--steps", 10, "--judge", runs / "clip", "--out", tmp_path / "report"]
    if task != "restore":  # for which ordinary models have no way
        flags += ["--plain", runs / "ldm"]
    call("evaluate.py", "task", tmp_path / "run", *data, *flags)
    metrics = json.loads((tmp_path / "report" / "task.json").read_text())["metrics"]
    other, number, sign = {
        "inpaint": ("what it begins with", "PSNR inside", 1),
        "upscale": ("bicubic", "judge's distance", -1),
        "restore": ("what it begins with", "judge's distance", -1),
    }[task]
    ours, theirs = (metrics[way][number]["value"] for way in ("this model", other))
    assert sign * ours > sign * theirs, metrics


@pytest.mark.slow
def test_a_model_of_classes_draws_them(runs, tmp_path):
    """The nine captions are its classes. A training gave 32 right ones of 36."""
    train_without_text(runs, tmp_path / "run", "class")
    drawn = tmp_path / "samples"
    call("sample.py", *PROMPTS * 4, "--model", tmp_path / "run", "--out", drawn)
    named = [" ".join(name_shape(Image.open(file))) for file in sorted(drawn.glob("[0-9]*.png"))]
    right = sum(f"a {name}" == prompt for name, prompt in zip(named, PROMPTS * 4, strict=True))
    assert right >= 27, named


@pytest.mark.slow
def test_a_model_without_text_draws_what_it_was_trained_on(runs, tmp_path):
    """Shapes of the three colors, and of no color between them: a training gave 31 clean ones."""
    train_without_text(runs, tmp_path / "run", "none")
    drawn = tmp_path / "samples"
    call("sample.py", "", "-n", 36, "--model", tmp_path / "run", "--out", drawn)
    pictures = [Image.open(file) for file in sorted(drawn.glob("[0-9]*.png"))]
    named = [name_shape(picture) for picture in pictures]
    assert len({name for name in named if "none" not in name}) >= 6, named
    clean = sum(color_error(picture) < 30 for picture in pictures)
    assert clean >= 27, [color_error(picture) for picture in pictures]


def train_without_text(runs: Path, out: Path, condition: str) -> None:
    flags = ("--data", runs / "data", "--preset", "tiny-32", *SHORTER, "--vae", runs / "vae")
    call("train_ldm.py", *flags, "--condition", condition, "--out", out)


def color_error(picture: Image.Image) -> float:
    """Return the mean distance of the pixels from white or the color of the shape, 0 to 442.

    Drawings of the data have 5 to 9, since their edges are smooth.
    """
    pixels = np.asarray(picture.convert("RGB"), dtype=float).reshape(-1, 3)
    colors = [np.array(value) for name, value in COLORS.items() if name == name_shape(picture)[0]]
    distances = [np.linalg.norm(pixels - color, axis=1) for color in (np.full(3, 255.0), *colors)]
    return float(np.min(distances, axis=0).mean())


def test_figures_of_a_model_are_good(runs, tmp_path):
    """The CLIP that it was trained with is no fair judge, but knows the nine captions.

    A copy with one weight changed stands for a judge of its own.
    """
    shutil.copytree(runs / "clip" / "model" / "clip", tmp_path / "judge")
    weights = load_file(file := tmp_path / "judge" / "open_clip_model.safetensors")
    weights["token_embedding.weight"][0] += 1e-2
    save_file(weights, file, {"format": "pt"})
    sampling = ("--samples", 12, "--steps", 10, "--guidance-scale", 2)
    flags = ("--data", runs / "data", *sampling, "--features", runs / "clip")
    out = tmp_path / "evaluation"
    call("evaluate.py", "model", runs / "ldm", *flags, "--judge", tmp_path / "judge", "--out", out)
    report = json.loads((out / "report.json").read_text())
    figures = {name: estimate["value"] for name, estimate in report["metrics"].items()}
    real = report["baselines"]["real images"]
    assert report["protocol"]["images"]["images"] == 12 and figures["reconstruction_psnr"] > 28
    assert real["recall@1"]["value"] >= figures["recall@1"] - 0.2
    assert figures["recall@5"] > 0.6
    ceiling = report["baselines"]["autoencoder (ceiling)"]["clip/frechet"]["value"]
    assert ceiling < figures["clip/frechet"]
    assert "data:image/png" in (out / "report.html").read_text()
