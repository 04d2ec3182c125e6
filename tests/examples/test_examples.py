"""Run each program of examples/, with fewer steps where it trains, and check its result."""

import importlib
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image

from autoencoder import Autoencoder

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def load(monkeypatch, tmp_path):
    """Return a function that imports an example by name; the program then writes into tmp_path."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.chdir(tmp_path)

    def load(name: str) -> ModuleType:
        return importlib.import_module(name)

    return load


def test_train_autoencoder(load):
    example = load("train_autoencoder")
    assert example.main(steps=60, folder="out") > 18  # dB; the mean image reaches 16
    assert Autoencoder.load("out").config.scaling_factor == 1


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # in diffusers
def test_load_into_diffusers(load):
    assert load("load_into_diffusers").main(folder="out") <= 1
    for name in ("diffusers.png", "latentsmith.png"):
        with Image.open(Path("out") / name) as picture:
            assert picture.size == (64, 64)
