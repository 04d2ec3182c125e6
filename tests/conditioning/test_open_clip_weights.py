"""open_clip's NAME:PRETRAINED gives open_clip's states; the wrong GELU is refused."""

import json
import time
import zipfile

import open_clip
import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save_file

from conditioning import TextEncoder
from conditioning.open_clip_weights import read_architecture
from conditioning.text_model import TextTowerConfig
from conditioning.tokenizer import Tokenizer
from foundation.errors import MissingFileError, UserError

PROMPTS = ["a red apple", "", "two cats and a very long story about them " * 9]
TEXT_CFG = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
VISION_CFG = {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16}


@pytest.fixture(params=["plain", "quickgelu", "custom"])
def checkpoint(request, tmp_path):
    """Register a tiny architecture with open_clip; return its name, a model, and the folder."""
    name = f"Tiny-{request.param}"
    config = {"embed_dim": 16, "vision_cfg": VISION_CFG, "text_cfg": TEXT_CFG}
    config["quick_gelu"] = request.param == "quickgelu"
    config["custom_text"] = request.param == "custom"  # another layout of the weights' names
    (tmp_path / f"{name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path / f"{name}.json")
    torch.manual_seed(0)
    model = open_clip.create_model(name).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    torch.save({"state_dict": model.state_dict()}, tmp_path / "weights.pt")
    return name, model, tmp_path


@pytest.mark.parametrize("file", ["weights.safetensors", "weights.pt"])
def test_states_and_ids_are_those_of_open_clip(checkpoint, file):
    name, model, folder = checkpoint
    encoder = TextEncoder.load(f"{name}:{folder / file}")
    ids = open_clip.tokenize(PROMPTS)
    assert torch.equal(encoder.tokenize(PROMPTS), ids)
    states = encoder(PROMPTS)[torch.arange(len(ids)), ids.argmax(dim=1)]
    projection = model.text.text_projection if "custom" in name else model.text_projection
    with torch.no_grad():
        assert torch.allclose(states @ projection, model.encode_text(ids), atol=1e-5)


def test_saving_and_loading_changes_nothing(checkpoint, tmp_path):
    name, _, folder = checkpoint
    encoder = TextEncoder.load(f"{name}:{folder / 'weights.safetensors'}")
    encoder.save(tmp_path / "pipeline")
    again = TextEncoder.load(tmp_path / "pipeline")
    prompts = [*PROMPTS, "wow! padding inside"]
    assert torch.equal(again.tokenize(prompts), encoder.tokenize(prompts))
    assert torch.equal(again(prompts), encoder(prompts))
    assert again.sha256 == encoder.sha256


def test_weights_of_another_architecture_are_refused(checkpoint):
    _, _, folder = checkpoint
    with pytest.raises(UserError, match="ViT-B-32"):
        TextEncoder.load(f"ViT-B-32:{folder / 'weights.safetensors'}")
    (folder / "weights.safetensors").write_bytes(b"not weights")
    with pytest.raises(UserError, match=r"weights\.safetensors"):
        TextEncoder.load(f"ViT-B-32:{folder / 'weights.safetensors'}")


def test_torchscript_archives_are_not_executed(tmp_path):
    with zipfile.ZipFile(tmp_path / "ViT-B-32.pt", "w") as archive:
        archive.writestr("ViT-B-32/constants.pkl", b"")  # what only such archives have
    with pytest.raises(UserError, match="TorchScript"):
        TextEncoder.load(f"ViT-B-32:{tmp_path / 'ViT-B-32.pt'}")


def test_openai_weights_under_a_plain_name_are_refused(tmp_path):
    with pytest.raises(UserError, match="ViT-L-14-quickgelu:openai"):
        TextEncoder.load("ViT-L-14:openai")
    file = tmp_path / "vit_large_patch14_clip_224.openai.safetensors"
    with pytest.raises(UserError, match=f"ViT-L-14-quickgelu:{file}"):
        TextEncoder.load(f"ViT-L-14:{file}")
    cached = tmp_path / "open_clip_model.safetensors"  # as in a folder downloaded from the hub
    content = {"model_cfg": {"quick_gelu": True}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=f"ViT-B-32-quickgelu:{cached}"):
        TextEncoder.load(f"ViT-B-32:{cached}")


@pytest.fixture
def no_network(monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # no server there


@pytest.mark.parametrize("offline", [True, False])
def test_missing_weights_are_reported_soon_without_a_network(
    no_network, monkeypatch, tmp_path, offline
):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    began = time.monotonic()
    with pytest.raises(MissingFileError) as error:
        TextEncoder.load("ViT-L-14-quickgelu:openai")
    assert time.monotonic() - began < 10
    message = str(error.value)
    assert "open_clip_model.safetensors" in message and str(tmp_path / "hub") in message
    assert "train_clip.py" in message and "HF_HOME" in message


def test_unknown_names_get_a_suggestion():
    with pytest.raises(UserError, match="ViT-L-14"):
        TextEncoder.load("ViT-L14:openai")
    with pytest.raises(MissingFileError, match="openai"):
        TextEncoder.load("ViT-B-32:opnai")


@pytest.mark.parametrize("name", ["coca_ViT-B-32", "ViT-B-16-SigLIP", "roberta-ViT-B-32"])
def test_towers_without_a_place_in_a_pipeline_folder_are_refused(name):
    with pytest.raises(UserError, match=name):
        TextEncoder.load(f"{name}:weights.safetensors")


def test_every_plain_clip_of_open_clip_is_understood():
    for name in ("ViT-L-14", "ViT-H-14", "ViT-bigG-14", "RN50-quickgelu", "ViT-B-32-quickgelu"):
        config = read_architecture(name)
        assert isinstance(config, TextTowerConfig)
        assert (config.hidden_act == "quick_gelu") == name.endswith("quickgelu")


def test_padding_of_open_clip(checkpoint):
    name, _, folder = checkpoint
    tokenizer = TextEncoder.load(f"{name}:{folder / 'weights.safetensors'}").tokenizer
    assert isinstance(tokenizer, Tokenizer)
    assert tokenizer([""])[0].tolist() == [49406, 49407, *[0] * 75]
