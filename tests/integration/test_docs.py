"""Run the programs in README.md and docs/ unchanged, with small models and images."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from autoencoder import PRESETS, Autoencoder
from autoencoder.training.latent_statistics import fold_statistics, measure_statistics
from tests.helpers.data.shapes_dataset import make_shapes
from tests.helpers.random_models import make_pipeline
from tests.helpers.snippets import python_blocks, run

ROOT = Path(__file__).parents[2]
README, GUIDE = ROOT / "README.md", ROOT / "docs" / "autoencoder.md"
SAMPLING, TASKS = ROOT / "docs" / "sampling.md", ROOT / "docs" / "tasks.md"
PROMPTS = ROOT / "docs" / "prompts.md"
LOSS_OF_ZERO = 2.0  # of a network that predicts 0, for a flow on latents of unit variance
LOGVAR = -10.0  # log-variance of the latents: little noise, as after a training
SHRINK = 0.1  # factor on the latents, so that their variance is not 1


def blocks(file: Path) -> list[str]:
    return python_blocks(file.read_text(encoding="utf-8"))


def block_with(text: str) -> str:
    """Return the one block of the guide that contains the text."""
    (code,) = (code for code in blocks(GUIDE) if text in code)
    return code


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """Make what the programs read: data/mine, runs/vae, runs/ldm. The weights are random."""
    root = tmp_path_factory.mktemp("docs")
    make_shapes(root / "data" / "mine", count=90)
    torch.manual_seed(0)
    raw = Autoencoder(PRESETS["tiny-32"]).eval()
    with torch.no_grad():
        raw.quant_conv.bias[4:] = LOGVAR
    files = sorted((root / "data" / "mine").glob("*.png"))
    images = torch.stack([torch.from_numpy(np.array(Image.open(file))) for file in files])
    images = images.permute(0, 3, 1, 2) / 127.5 - 1
    statistics = measure_statistics(raw, images.split(30))
    fold_statistics(raw, statistics).save(root / "runs" / "vae" / "model")
    make_pipeline().save(root / "runs" / "ldm" / "model")
    return root


@pytest.fixture
def here(world, monkeypatch) -> Path:
    monkeypatch.chdir(world)
    return world


SHORT = [
    pytest.param(code, id=f"{file.stem}-{k}")
    for file in (README, GUIDE, SAMPLING, TASKS, PROMPTS)
    for k, code in enumerate(blocks(file))
    if "STEPS" not in code
]


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # in diffusers
@pytest.mark.parametrize("code", SHORT)
def test_short_programs_run(here, code):
    run(code)


def test_statistics_of_other_images_are_measured_again(tmp_path, world, monkeypatch, capsys):
    """The check on the page finds an autoencoder that does not fit, and repairs it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").symlink_to(world / "data")
    other = Autoencoder.load(world / "runs" / "vae")
    with torch.no_grad():
        other.quant_conv.weight[:4] *= SHRINK
    other.save(tmp_path / "runs" / "vae")
    code = block_with("vae-refolded")
    before = run(code)["latents"].std()
    assert before < 0.8
    run(code.replace('"runs/vae"', '"runs/vae-refolded"'))
    spread = capsys.readouterr().out.split("standard deviation of the latents ")[2]
    assert spread.startswith(("1.0", "0.99"))


def test_the_transformer_learns_and_draws(here):
    """A loss below pi / 2 needs more than mean and variance of the latents."""
    small = {"SIDE": 32, "WIDTH": 64, "DEPTH": 2, "STEPS": 200, "BATCH": 32, "RATE": 3e-3}
    names = run(block_with("class Transformer"), **small)
    losses = torch.tensor(names["losses"])
    assert losses[:5].mean() == pytest.approx(LOSS_OF_ZERO, rel=0.1)
    assert losses[-50:].mean() < 0.7 * LOSS_OF_ZERO  # pi / 4 is 0.785
    with Image.open("samples.png") as sheet:
        assert sheet.size == (128, 128)
        assert np.asarray(sheet).std() > 1  # not one flat color


def test_the_diffusers_script_learns_and_draws(here):
    names = run(block_with("UNet2DModel"), SIDE=32, STEPS=20, BATCH=8)
    assert names["loss"] < 0.9  # a network that predicts 0 has 1
    ours = Autoencoder.load("runs/vae").decode(names["latents"])
    torch.testing.assert_close(names["decoded"], ours)
    with Image.open("sample-3.png") as picture:
        assert picture.size == (32, 32)
