"""The recipe of emojis in four styles: its captions, its splits, and packages that are damaged."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dataset.captions.choice import count_languages
from dataset.folder import read_folder
from foundation.errors import UserError
from recipes import emoji
from tests.helpers.bad_calls import tree

pytest.importorskip("resvg_py")
pytest.importorskip("emoji")
THINGS = [f"thing-{k}" for k in range(40)]
TONED = [f"baker-{tone}-skin-tone" for tone in emoji.TONES]


def drawing(number: int) -> dict[str, str | bool]:
    return {"body": f'<rect x="4" y="4" width="8" height="8" fill="#{number:06x}"/>'}


def write_packages(folder: Path, icons: dict[str, dict]) -> Path:
    """Write four small npm packages with the same drawings."""
    folder.mkdir(parents=True)
    files = {
        "icons.json": {"icons": icons, "width": 16, "height": 16},
        "chars.json": {"1f680": "rocket"},
        "info.json": {
            "name": "Some Set",
            "author": {"name": "Somebody", "url": "https://example.org"},
            "license": {"title": "MIT", "url": "https://example.org/license"},
        },
    }
    for package, version in emoji.PACKAGES.values():
        name = package.removeprefix("@").replace("/", "-")
        with tarfile.open(folder / f"{name}-{version}.tgz", "w:gz") as archive:
            for file, content in files.items():
                data = json.dumps(content).encode()
                member = tarfile.TarInfo(f"package/{file}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Return a folder that the recipe made from small packages."""
    root = tmp_path_factory.mktemp("emoji")
    icons = {name: drawing(k * 1000) for k, name in enumerate([*THINGS, *TONED, "rocket"])}
    icons["baker-tone5"] = icons[TONED[-1]] | {"hidden": True}  # an older name of the same drawing
    packages = write_packages(root / "packages", icons)
    emoji.main([str(root / "out"), "--size", "32", "--packages", str(packages)])
    return root / "out"


def by_name(split: Path) -> dict[str, tuple[str, ...]]:
    return {
        Path(str(pair.path)).relative_to(split / "images").as_posix(): pair.captions
        for pair in read_folder(split).pairs
    }


def test_captions_name_thing_and_style_in_many_languages(made):
    pairs = by_name(made / "train") | by_name(made / "test")
    texts = pairs["noto/rocket.png"]
    assert texts[:3] == ("rocket, noto style", "rocket", "rakete, noto style")
    assert "ракета, noto style" in texts and "ロケット, noto style" in texts
    languages = count_languages(read_folder(made / "train").pairs)
    assert languages["en"] == 2 * len(by_name(made / "train")) and languages["ja"]
    assert pairs["fluent/thing-3.png"] == ("thing 3, fluent style", "thing 3")
    row = json.loads((made / "train" / "metadata.jsonl").read_text("utf-8").splitlines()[0])
    assert row["caption_weights"] == [3 if "style" in text else 1 for text in row["text"]]
    assert pairs["openmoji/baker-tone5.png"] == pairs["openmoji/baker-dark-skin-tone.png"]


def test_pictures_are_on_white_and_have_the_size(made):
    file = next((made / "train" / "images" / "noto").glob("*.png"))
    pixels = np.asarray(Image.open(file))
    assert pixels.shape == (32, 32, 3)
    assert (pixels[0] == 255).all() and not (pixels[16, 16] == 255).all()


def test_held_out_combinations_are_in_test_alone_and_their_parts_in_train(made):
    train, test = by_name(made / "train"), by_name(made / "test")
    assert len(train) + len(test) == 4 * (len(THINGS) + len(TONED) + 2)
    held_out = json.loads((made / "held-out.json").read_text(encoding="utf-8"))
    listed = {*held_out["thing and style"], *held_out["person and skin tone"]}
    assert held_out["thing and style"]
    trained = {caption for texts in train.values() for caption in texts if "style" in caption}
    for texts in test.values():
        assert not trained & {text for text in texts if "style" in text}
        assert listed & set(texts)
    things = {texts[1] for texts in train.values()}
    assert {texts[1] for texts in test.values()} <= things | set(held_out["person and skin tone"])


def test_skin_tones_can_be_rarer_in_train_alone(made, tmp_path, capsys):
    def toned(split: Path) -> set[str]:
        return {name for name in by_name(split) if "baker" in name}

    packages = str(made.parent / "packages")
    for share in ("0", "0.5"):
        out = tmp_path / share
        emoji.main([str(out), "--size", "32", "--packages", packages, "--skin-tones", share])
        assert by_name(out / "test") == by_name(made / "test")
        all_kept = by_name(out / "train").items() <= by_name(made / "train").items()
        assert all_kept and toned(out / "train") < toned(made / "train")
        others = by_name(made / "train").keys() - toned(made / "train")
        assert others <= by_name(out / "train").keys()
        assert bool(toned(out / "train")) == (share == "0.5")
        count = len(by_name(out / "train")) + len(by_name(out / "test"))
        assert f"{count} pictures" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"--skin-tones is 2\.0; it must be from 0 to 1"):
        emoji.main([str(tmp_path / "new"), "--skin-tones", "2"])


def test_every_style_brings_its_license(made):
    for folder in (made, made / "train", made / "test"):
        for style in emoji.PACKAGES:
            text = (folder / f"ATTRIBUTION-{style}.txt").read_text(encoding="utf-8")
            assert "MIT" in text and emoji.PACKAGES[style][0] in text


def test_made_again_only_if_something_changes(made, capsys):
    before = tree(made)
    emoji.main([str(made), "--size", "32", "--packages", "nowhere"])
    assert "nothing to do" in capsys.readouterr().out
    assert tree(made) == before


def test_missing_and_damaged_packages_are_named(tmp_path):
    packages = write_packages(tmp_path / "packages", {"rocket": drawing(1)})
    file = packages / "iconify-json-noto-1.2.9.tgz"
    file.write_bytes(file.read_bytes()[:100])
    for folder, name in ((packages, "noto"), (tmp_path / "none", "openmoji")):
        with pytest.raises(UserError, match=name):
            emoji.main([str(tmp_path / "out"), "--packages", str(folder)])
        assert not (tmp_path / "out").exists()


def test_without_npm_the_packages_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(emoji.shutil, "which", lambda name: None)
    with pytest.raises(UserError, match=r"fluent-emoji-flat@1\.2\.6"):
        emoji.main([str(tmp_path / "out")])


def test_a_drawing_that_is_not_square_is_centered(tmp_path):
    packages = write_packages(
        tmp_path / "packages",
        {
            "rocket": {
                "body": '<rect width="16" height="8" fill="#000"/>',
                "height": 8,
            }
        },
    )
    emoji.main([str(tmp_path / "out"), "--size", "32", "--packages", str(packages)])
    pixels = np.asarray(Image.open(tmp_path / "out/train/images/noto/rocket.png"))
    assert pixels.shape == (32, 32, 3)
    assert (pixels[16] == 0).all() and (pixels[0] == 255).all() and (pixels[-1] == 255).all()


@given(st.sampled_from(emoji.TONES), st.sampled_from(["", "woman-", "kiss-man-man-"]))
def test_older_spellings_of_a_skin_tone_give_the_same_words(tone, prefix):
    person, number = f"{prefix}baker", emoji.TONES.index(tone) + 1
    icons = {f"{person}-{t}" for t in emoji.TONES}
    expected = f"{person}-{tone}-skin-tone".replace("-", " ")
    for icon in (f"{person}-{tone}-skin-tone", f"{person}-tone{number}", f"{person}-{tone}"):
        assert emoji.thing_of(icon, icons) == expected
