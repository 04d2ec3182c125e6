"""What a model records names things, and leads to nobody's folders."""

import json
import os
import stat

import pytest

from autoencoder import PRESETS, Autoencoder
from foundation.errors import UserError
from interop.provenance import checked_provenance, last_part, without_paths

RECORDED = {
    "config": {
        "data": "/home/ada/pictures/mine",
        "out": "/home/ada/runs/a",
        "vae": "C:\\Users\\ada\\vae",
        "text_encoder": "ViT-L-14:/home/ada/clip.safetensors",
        "steps": 3,
        "overrides": [{"step": 2, "flags": ["data: /home/ada/x -> /mnt/ada/y", "steps: 3 -> 4"]}],
    },
    "autoencoder": {"config": {"data": "/home/ada/photos"}},
}


def test_paths_are_their_last_part_and_nothing_else_changes():
    written = without_paths(RECORDED)
    assert "ada" not in json.dumps(written)
    assert written["config"] == {
        "data": "mine",
        "out": ".",
        "vae": "vae",
        "text_encoder": "ViT-L-14:clip.safetensors",
        "steps": 3,
        "overrides": [{"step": 2, "flags": ["data: x -> y", "steps: 3 -> 4"]}],
    }
    assert written["autoencoder"]["config"] == {"data": "photos"}
    assert without_paths(written) == written


@pytest.mark.parametrize(
    ("path", "name"),
    [("a/b/", "b"), ("b", "b"), ("", "."), ("/", "."), ("s/{0..9}.tar", "{0..9}.tar")],
)
def test_last_parts(path, name):
    assert last_part(path) == name


def test_equal_models_made_in_different_folders_are_equal_to_the_byte(tmp_path):
    model = Autoencoder(PRESETS["tiny-32"])
    for name in ("a", "b"):
        config = {"out": str(tmp_path / name), "data": str(tmp_path / name / "pictures")}
        model.save(tmp_path / name, {"config": config})
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert len(files) == 4
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


@pytest.mark.skipif(os.name != "posix", reason="modes of files")
@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_files_follow_the_umask(tmp_path, umask):
    before = os.umask(umask)
    try:
        Autoencoder(PRESETS["tiny-32"]).save(tmp_path / "vae")
    finally:
        os.umask(before)
    for file in (tmp_path / "vae").iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o666 & ~umask, file.name


@pytest.mark.parametrize(
    ("entries", "place"),
    [
        ([], "provenance"),
        ({"config": 3}, "config"),
        ({"config": {"caption_dropout": "0"}}, r"config\.caption_dropout"),
        ({"pixels": {"dtype": 8}}, r"pixels\.dtype"),
        ({"same_latents_as_sha256": "abc"}, "same_latents_as_sha256"),
        ({"autoencoder": {"text_chunks": True}}, "text_chunks"),
    ],
)
def test_entries_of_other_types_are_refused(entries, place):
    with pytest.raises(UserError, match=rf"f\.json.*{place}"):
        checked_provenance(entries, "f.json")
