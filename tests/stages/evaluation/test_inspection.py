"""evaluate.py reconstruct: what an autoencoder makes of one picture."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

import evaluate
from autoencoder import Autoencoder
from dataset.images.pixel_format import EIGHT_BIT
from evaluation.reconstruction import psnr
from stages.evaluation.reconstruction import decode_with_noise, inspect_picture, reconstruct

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def picture(world):
    return sorted((world / "data").glob("*.png"))[0]


@pytest.fixture(scope="module")
def found(world, picture):
    autoencoder = Autoencoder.load(world / "vae")
    return inspect_picture(autoencoder, picture, EIGHT_BIT, CPU, noise=(0.1, 0.5))


def test_the_numbers_are_those_of_the_pictures(found):
    pictures = found.pictures(4)
    first, second = (
        np.asarray(pictures[name], dtype=float) for name in ("original", "reconstruction")
    )
    error = np.mean((first - second) ** 2)
    assert found.metrics["psnr"] == pytest.approx(10 * np.log10(255**2 / error))
    expected = np.clip(127.5 + 4 * (second - first), 0, 255)
    assert np.array_equal(np.asarray(pictures["difference"]), expected.astype(np.uint8))
    noisy = torch.from_numpy(np.array(pictures["noise-0.5"])).permute(2, 0, 1)[None]
    assert found.robustness[-1] == (0.5, pytest.approx(psnr(found.pixels, noisy).item()))
    assert [strength for strength, _ in found.robustness] == [0, 0.1, 0.5]


def test_latent_pictures_span_the_values_of_their_channel(found):
    latents = found.reconstruction.latents[0]
    assert len(found.latent_pictures()) == len(latents) == len(found.channels)
    for (picture, (low, high)), channel in zip(found.latent_pictures(), latents, strict=True):
        assert (low, high) == (channel.min().item(), channel.max().item())
        assert picture.getextrema() == (0, 255) and picture.size == tuple(channel.shape[::-1])


def test_noise_belongs_to_the_number_of_an_image(world):
    autoencoder = Autoencoder.load(world / "vae")
    pixels = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    both = reconstruct(autoencoder, pixels, CPU)
    second = reconstruct(autoencoder, pixels[1:], CPU)
    plain, noisy = decode_with_noise(autoencoder, both, (0.0, 0.5), 3, range(2))
    assert torch.equal(plain, both.pixels) and not torch.equal(noisy, plain)
    [alone] = decode_with_noise(autoencoder, second, (0.5,), 3, range(1, 2))
    assert (alone.int() - noisy[1:].int()).abs().max() <= 1


def test_the_command_writes_pictures_and_numbers(world, picture, tmp_path, capsys):
    words = ["reconstruct", world / "vae", picture, "--noise", 0.5, "--out", tmp_path / "out"]
    evaluate.main([*map(str, words), "--device", "cpu"])
    numbers = json.loads((tmp_path / "out" / "numbers.json").read_text())
    assert f"PSNR {numbers['metrics']['psnr']:.4g}" in capsys.readouterr().out
    names = {file.stem for file in (tmp_path / "out").glob("*.png")}
    assert {"original", "reconstruction", "difference", "latent-0", "noise-0.5"} <= names
    with Image.open(tmp_path / "out" / "original.png") as original:
        assert original.size == (32, 32)


@pytest.mark.parametrize(
    ("name", "more", "words"),
    [
        ("missing.png", (), "missing.png"),
        ("text.png", (), "text.png"),
        ("", ("--size", 33), "multiple"),
        ("", ("--noise", -1), "noise"),
    ],
)
def test_what_cannot_be_reconstructed_is_named(world, picture, tmp_path, name, more, words):
    (tmp_path / "text.png").write_text("no picture")
    file = tmp_path / name if name else picture
    flags = ["reconstruct", world / "vae", file, "--out", tmp_path / "out", "--device", "cpu"]
    with pytest.raises(ValueError, match=words):
        evaluate.main([str(word) for word in (*flags, *more)])
    assert not (tmp_path / "out").exists()
