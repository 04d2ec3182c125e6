"""Formats of the files that sample.py writes, and what it writes besides images."""

import numpy as np
from PIL import Image
from safetensors.torch import load_file

from ldm import TextToImage
from tests.helpers.sample_runs import reproduce, run_sample


def test_formats_of_files(world, tmp_path, capsys):
    files = run_sample(world, tmp_path, "--format", "webp", "-n", 2, "--quality", 80)
    assert [file.name for file in files] == ["00000.webp", "00001.webp", "grid-0000.webp"]
    assert tmp_path / "00000.jpg" in run_sample(world, tmp_path, "--format", "jpeg")
    printed = reproduce(
        capsys, tmp_path / "00000.jpg", tmp_path / "again", "--model", world / "ldm"
    )
    assert "not compared" in printed


def test_small_images_are_enlarged_in_the_grid(world, tmp_path, capsys):
    """To at least 70 pixels: three times 32. Their own files are as drawn."""
    files = run_sample(world, tmp_path, "-n", 4, "--grid-cell", 70)
    grid = np.asarray(Image.open(files[-1]))
    assert grid.shape == (2 * 98 + 2, 2 * 98 + 2, 3)
    first = np.asarray(Image.open(files[0]))
    assert first.shape == (32, 32, 3)
    assert np.array_equal(grid[2:98:3, 2:98:3], first)
    assert np.array_equal(grid[4:98:3, 4:98:3], first)


def test_saved_latents_are_those_of_the_image(world, tmp_path):
    run_sample(world, tmp_path, "--save-latents")
    latents = load_file(tmp_path / "00000.safetensors")["latents"]
    image = TextToImage.load(world / "ldm").to_picture(latents)
    with Image.open(tmp_path / "00000.png") as written:
        assert image.tobytes() == written.tobytes()


def test_previews_are_written_every_so_many_calls(world, tmp_path):
    run_sample(world, tmp_path, "-n", 2, "--steps", 4, "--preview-every", 2)
    names = sorted(path.name for path in (tmp_path / "previews").iterdir())
    assert names == [f"0000{k}-00{call}.png" for k in (0, 1) for call in (2, 4)]
    last, final = tmp_path / "previews" / "00001-004.png", tmp_path / "00001.png"
    with Image.open(last) as preview, Image.open(final) as result:
        assert preview.tobytes() == result.tobytes()  # the last call gives the result
    run_sample(world, tmp_path / "none")
    assert not (tmp_path / "none" / "previews").exists()
