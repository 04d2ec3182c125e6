"""The recipe of photographs: reading packages, where crops lie, what is held out, notices."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dataset.folder import read_folder
from foundation.errors import UserError
from recipes import photographs
from recipes.photographs import PHOTOGRAPHS, Photograph
from tests.helpers.bad_calls import tree

pytest.importorskip("debian")
IN_PACKAGES = [photograph for photograph in PHOTOGRAPHS if photograph.source in photographs.DEBIAN]
CHOSEN = (IN_PACKAGES[0], next(each for each in IN_PACKAGES if each.is_test), IN_PACKAGES[-1])


def gradient(width: int, height: int) -> bytes:
    """Return a JPEG whose red grows to the right and whose green grows downwards."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., 0] = np.linspace(0, 255, width)
    pixels[..., 1] = np.linspace(0, 255, height)[:, None]
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="JPEG", quality=95)
    return file.getvalue()


def archive(files: dict[str, bytes], mode: str) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode) as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return file.getvalue()


def write_package(file: Path, content: dict[str, bytes]) -> None:
    """Write a Debian package, as deb(5) describes it: an `ar` archive of three members."""
    members = {
        "debian-binary": b"2.0\n",
        "control.tar.gz": archive({"./control": b"Package: some\n"}, "w:gz"),
        "data.tar.xz": archive(content, "w:xz"),
    }
    data = b"!<arch>\n"
    for name, member in members.items():
        data += f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(member):<10}`\n".encode() + member
        data += b"\n" * (len(member) % 2)
    file.write_bytes(data)


@pytest.fixture
def packages(tmp_path, monkeypatch) -> Path:
    """Make small packages that hold three of the photographs."""
    monkeypatch.setattr(photographs, "PHOTOGRAPHS", CHOSEN)
    monkeypatch.setattr(photographs, "PYPI", {})
    folder = tmp_path / "packages"
    folder.mkdir()
    for package in photographs.DEBIAN:
        files = {
            f"./{photographs.FOLDERS[package]}/{photograph.file}": gradient(300, 200)
            for photograph in CHOSEN
            if photograph.source == package
        }
        write_package(folder / f"{package}_1.0_all.deb", files)
    return folder


def make(out: Path, packages: Path, *flags: str) -> None:
    photographs.main([str(out), "--size", "32", "--packages", str(packages), *flags])


def test_whole_photographs_are_held_out_and_everybody_is_named(tmp_path, packages):
    make(tmp_path / "out", packages, "--crops", "20")
    train, test = (read_folder(tmp_path / "out" / split) for split in ("train", "test"))
    assert (len(train.pairs), len(test.pairs)) == (40, 20)
    assert set(train.sizes + test.sizes) == {(32, 32)}
    words = CHOSEN[1].caption
    assert {pair.captions for pair in test.pairs} == {(words,), (f"detail of {words}",)}
    for folder in (tmp_path / "out", tmp_path / "out/train", tmp_path / "out/test"):
        notice = (folder / "ATTRIBUTION.txt").read_text(encoding="utf-8")
        assert all(each.author in notice and each.license in notice for each in CHOSEN)


def test_a_crop_shows_its_square(tmp_path, packages):
    make(tmp_path / "out", packages, "--crops", "3")
    name = CHOSEN[0].name
    squares = photographs.boxes(name, (300, 200), 32, 3)
    for number, (left, top, right, bottom) in enumerate(squares):
        crop = Image.open(tmp_path / f"out/train/images/{name}-{number:03}.png")
        red, green, blue = np.asarray(crop, float).mean((0, 1))
        assert red == pytest.approx((left + right) / 2 / 300 * 255, abs=3)
        assert green == pytest.approx((top + bottom) / 2 / 200 * 255, abs=3)
        assert blue < 3


@given(
    st.tuples(st.integers(1, 5000), st.integers(1, 5000)),
    st.integers(8, 512),
    st.text(max_size=8),
)
def test_squares_lie_inside_and_depend_on_the_name_alone(image_size, size, name):
    squares = list(photographs.boxes(name, image_size, size, 5))
    assert squares == list(photographs.boxes(name, image_size, size, 5))
    for left, top, right, bottom in squares:
        assert 0 <= left < right <= image_size[0] and 0 <= top < bottom <= image_size[1]
        assert right - left == bottom - top >= min(*image_size, round(1.5 * size))


def test_photographs_have_names_of_their_own_and_a_license():
    assert len({photograph.name for photograph in PHOTOGRAPHS}) == len(PHOTOGRAPHS) == 47
    assert sum(photograph.is_test for photograph in PHOTOGRAPHS) == 6
    assert all(each.caption and each.author and each.license for each in PHOTOGRAPHS)


@pytest.mark.parametrize("damage", ["missing", "cut", "other"])
def test_packages_that_cannot_be_read_are_named_and_nothing_is_left(tmp_path, packages, damage):
    package = CHOSEN[-1].source
    file = packages / f"{package}_1.0_all.deb"
    if damage == "missing":
        file.unlink()
    elif damage == "cut":
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    else:
        write_package(file, {"./usr/share/other.jpg": gradient(30, 20)})
    before = tree(tmp_path)
    with pytest.raises(UserError, match=package):
        make(tmp_path / "out", packages)
    assert tree(tmp_path) == before


def test_the_same_options_again_change_nothing(tmp_path, packages, capsys):
    make(tmp_path / "out", packages, "--crops", "2")
    before = tree(tmp_path / "out")
    make(tmp_path / "out", packages, "--crops", "2")
    assert "nothing to do" in capsys.readouterr().out
    assert tree(tmp_path / "out") == before


def test_photographs_of_python_packages_are_read_where_they_are_installed():
    pytest.importorskip("skimage")
    cat = Photograph("skimage", "chelsea.png", "a cat", "somebody", "CC0 1.0")
    assert photographs.read_photograph(cat, {}).size == (451, 300)
