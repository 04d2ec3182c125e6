"""Run each program of examples/, with fewer steps where it trains, and check its result."""

import importlib
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

from autoencoder import Autoencoder
from ldm import TextToImage
from ldm.samplers import NoiseLevels
from ldm.schedule import RectifiedFlow

EXAMPLES = Path(__file__).parents[2] / "examples"
MODEL = EXAMPLES.parent / "checkpoints" / "demo"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """The folder in which all programs run; one reads there what another one has written."""
    return tmp_path_factory.mktemp("examples")


@pytest.fixture
def load(monkeypatch, folder):
    """Return a function that imports a program by its name."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.chdir(folder)

    def load(name: str) -> ModuleType:
        return importlib.import_module(name)

    return load


def difference(a: Image.Image, b: Image.Image) -> float:
    """Return the root mean square difference of two pictures, in levels of 255."""
    return float(np.square(np.asarray(a, float) - np.asarray(b, float)).mean() ** 0.5)


def test_train_autoencoder_and_denoiser(load):
    autoencoder = load("train_autoencoder")
    assert autoencoder.main(steps=60) > 18  # dB; the mean image reaches 16
    assert Autoencoder.load(autoencoder.FOLDER).config.scaling_factor == 1
    # 2 is the loss of a network that predicts 0, pi / 2 that of one that knows only the variance.
    assert load("train_denoiser").main(steps=100) < 1.3
    with Image.open("samples/examples/squares.png") as sheet:
        assert sheet.size == (256, 256)


def relative_error(sampler, steps: int) -> float:
    """Compare a sampler with the exact solution, which is known for Gaussian data."""
    schedule, std = RectifiedFlow(), 0.5
    levels = NoiseLevels(schedule, steps)

    def denoise(z_t, t):
        alpha, sigma = schedule(t)
        return alpha * std**2 / (alpha**2 * std**2 + sigma**2) * z_t

    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    exact = noise * std / (levels.alpha[0] ** 2 * std**2 + levels.sigma[0] ** 2).sqrt()
    return ((sampler(denoise, noise, levels) - exact).norm() / exact.norm()).item()


def test_own_sampler(load):
    """Twice the steps divide the error of a method of second order by four."""
    example = load("own_sampler")
    try:
        picture = example.main(steps=5)
    finally:
        example.SAMPLERS.pop("adams_bashforth", None)
    with Image.open("samples/examples/own_sampler.png") as saved:
        assert difference(saved, picture) == 0
    errors = [relative_error(example.adams_bashforth, steps) for steps in (40, 80)]
    assert errors[0] < 0.02
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.25)


def test_own_guidance(load, monkeypatch):
    """With a constant scale it is the picture of the pipeline; with its own scale another one."""
    example = load("own_guidance")
    (plain,) = TextToImage.load(MODEL)([example.PROMPT], steps=10, guidance_scale=1.0, seed=3)
    guided = example.main(steps=10)
    monkeypatch.setattr(example, "HIGHEST_SCALE", 1.0)
    unguided = example.main(steps=10)
    assert difference(unguided, plain) < 1 < difference(guided, plain)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # in diffusers
def test_load_into_diffusers(load):
    assert load("load_into_diffusers").main() <= 1
    for name in ("diffusers.png", "latentsmith.png"):
        with Image.open(Path("samples/examples") / name) as picture:
            assert picture.size == (64, 64)
