"""Feature spaces against the networks they come from; what is said of missing weights."""

import shutil
import warnings

import pytest
import torch
from torch import nn

from conditioning.clip import Clip
from evaluation.feature_spaces import fidelity
from evaluation.feature_spaces.choice import choose_spaces, load_space
from foundation.errors import UserError
from foundation.hashing import file_sha256

CPU = torch.device("cpu")


class Colors(nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.float().mean(dim=(2, 3))


def script(module: nn.Module, file) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated
        torch.jit.script(module).save(str(file))
    return str(file)


def pictures(n: int = 3, side: int = 48) -> torch.Tensor:
    random = torch.Generator().manual_seed(0)
    return torch.randint(256, (n, 3, side, side), generator=random, dtype=torch.uint8)


def test_a_clip_of_stage_0_gives_the_features_that_it_was_trained_to_give(world):
    images = pictures()
    space = load_space(str(world / "clip"), CPU)
    expected = Clip.load(world / "clip").encode_images(images)
    assert torch.allclose(space(images).vectors, expected, atol=1e-5)
    assert space.is_clip and space.name == "clip"
    assert space.sha256 == file_sha256(
        world / "clip" / "model" / "clip" / "open_clip_model.safetensors"
    )


def test_a_torchscript_file(tmp_path):
    images = pictures()
    space = load_space(script(Colors(), tmp_path / "colors.pt"), CPU)
    assert torch.allclose(space(images).vectors, images.float().mean(dim=(2, 3)))
    assert space.describe()["name"] == "colors.pt" and space(images).logits is None


def test_what_is_missing_is_named_with_its_place(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    chosen = choose_spaces((), CPU)
    assert not chosen.spaces and list(chosen.missing) == ["inception", "dinov2", "clip"]
    text = chosen.missing["inception"]
    for part in (str(tmp_path / "checkpoints" / fidelity.INCEPTION_FILE), "MB", "6726825d"):
        assert part in text
    with pytest.raises(UserError, match=r"https://.*inception"):
        choose_spaces(["inception"], CPU)


def test_a_damaged_file_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / fidelity.INCEPTION_FILE).write_bytes(b"half of it")
    with pytest.raises(UserError, match=f"{fidelity.INCEPTION_FILE} is damaged.*6726825d"):
        choose_spaces((), CPU)


@pytest.mark.parametrize(
    ("name", "pattern"),
    [
        ("incepton", "'incepton'.*inception.*TorchScript"),
        ("ViT-B-33:{here}/weights.pt", "'ViT-B-33'.*ViT-B-32"),
        ("ViT-B-32:{here}/none.pt", r"/none\.pt"),
        ("{here}/weights.pt", r"/weights\.pt is no TorchScript"),
        ("{here}/clip", r"/clip.*open_clip_model\.safetensors"),
    ],
)
def test_what_is_no_feature_space(world, tmp_path, name, pattern):
    torch.save({"a": torch.zeros(1)}, tmp_path / "weights.pt")
    shutil.copytree(world / "clip" / "model" / "clip", tmp_path / "clip")
    (tmp_path / "clip" / "open_clip_model.safetensors").unlink()
    with pytest.raises(UserError, match=pattern):
        load_space(name.format(here=tmp_path), CPU)


@pytest.mark.slow
def test_inception_is_that_of_the_library(monkeypatch, tmp_path):
    """With random weights in a file of the right name."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(fidelity, "INCEPTION_FILE", "random-.pth")
    monkeypatch.setattr(
        "torch_fidelity.feature_extractor_inceptionv3.load_state_dict_from_url",
        lambda *_, **__: {},
    )
    monkeypatch.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
    network = FeatureExtractorInceptionV3("inception-v3-compat", ["2048", "logits_unbiased"])
    monkeypatch.undo()
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(fidelity, "INCEPTION_FILE", "random-.pth")
    (tmp_path / "checkpoints").mkdir()
    torch.save(network.state_dict(), tmp_path / "checkpoints" / "random-.pth")
    images = pictures(2)
    found = load_space("inception", CPU)(images)
    vectors, logits = network(images)
    assert torch.allclose(found.vectors, vectors) and torch.allclose(found.logits, logits)
