"""Model cards: valid for Hugging Face, equal to the other files, with snippets that run."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard

import train_clip
import train_ldm
from autoencoder import PRESETS, Autoencoder
from conditioning import TextEncoder
from foundation.hashing import tensors_sha256
from interop.model_card import CARD, training_section
from interop.provenance import without_paths
from ldm.schedule import ScheduleConfig
from ldm.unet import UNet, UNetConfig
from tests.helpers.bad_calls import command
from tests.helpers.peer_settings import ODD_UNETS, SMALL_UNET
from tests.helpers.random_models import make_pipeline
from tests.helpers.snippets import python_blocks, run, run_all
from tests.helpers.text_encoders import small_encoder

SMALL = UNetConfig(**SMALL_UNET)
FOLDED = {"mean": [0.25, -1.5, 0.125, 3.0], "std": [0.5, 2.0, 1.0625, 0.75], "images": 4096}
TRAINED = {
    "config": {"data": "data/mine", "steps": 300, "seed": 7, "device": "cpu", "out": "runs/vae"},
    "weights": "averaged over the last steps (EMA)",
    "latent_statistics_folded_in": FOLDED,
}


def read(folder: Path) -> str:
    """Return a card's text, after checks that apply to every card."""
    text = (folder / CARD).read_text(encoding="utf-8")
    data = ModelCard(text, ignore_metadata_errors=False).data
    assert data.library_name in ("diffusers", "transformers") and "latentsmith" in data.tags
    assert data.license is None and "## License" in text
    assert str(folder) not in text
    return text


def saved_in_current_folder(autoencoder, tmp_path, monkeypatch, provenance=None) -> Path:
    autoencoder.save(tmp_path / "vae", provenance)
    monkeypatch.chdir(tmp_path / "vae")
    return tmp_path / "vae"


@pytest.fixture
def vae(tmp_path, monkeypatch) -> Path:
    torch.manual_seed(0)
    return saved_in_current_folder(Autoencoder(PRESETS["tiny-32"]), tmp_path, monkeypatch, TRAINED)


def test_the_autoencoder_card_has_the_numbers_of_latentsmith_json(vae):
    text = read(vae)
    beside = json.loads((vae / "latentsmith.json").read_text())
    statistics = beside["latent_statistics_folded_in"]
    for name in ("mean", "std"):
        assert ", ".join(f"{value:g}" for value in statistics[name]) in text
    assert "4096 training images" in text and Autoencoder.load(vae).sha256 in text
    for fact in ("data: `mine`", "steps: `300`", "seed: `7`", "4 times smaller", "(EMA)"):
        assert fact in text
    assert "runs/vae" not in text  # of the paths on the machine, only the name of the data


def test_autoencoder_snippets_run_and_agree(vae):
    text = read(vae).replace(".sample()", ".mode()")
    first, second = python_blocks(text)
    ours = run(first)
    theirs = run(second, dict(ours))
    torch.testing.assert_close(ours["latents"], theirs["latents"])
    assert tuple(ours["latents"].shape) == (1, 4, 8, 8) and "(1, 4, 8, 8)" in text
    torch.testing.assert_close(ours["autoencoder"].decode(ours["latents"]), theirs["again"])


@pytest.mark.parametrize(
    "scale",
    [
        {"scaling_factor": 0.3611},
        {"scaling_factor": 0.3611, "shift_factor": 0.1159},
        {
            "scaling_factor": 0.5,
            "latents_mean": (-1.6574, 1.886, -1.383, 2.5155),
            "latents_std": (8.4927, 5.9022, 6.5498, 5.2299),
        },
    ],
    ids=["scale", "scale and shift", "statistics"],
)
def test_a_scale_that_is_not_folded_in_is_in_the_snippet(scale, tmp_path, monkeypatch):
    torch.manual_seed(0)
    autoencoder = Autoencoder(replace(PRESETS["tiny-32"], **scale))
    text = read(saved_in_current_folder(autoencoder, tmp_path, monkeypatch))
    assert "unit variance" not in text and "not recorded here" in text
    first, second = python_blocks(text.replace(".sample()", ".mode()"))
    ours = run(first)
    theirs = run(second, dict(ours))
    torch.testing.assert_close(ours["latents"], theirs["latents"])
    torch.testing.assert_close(ours["again"], theirs["again"], rtol=1e-4, atol=1e-5)


def test_the_same_model_has_the_same_card(vae, tmp_path):
    Autoencoder.load(vae).save(tmp_path / "again", TRAINED)
    assert read(tmp_path / "again") == read(vae)


@pytest.mark.parametrize(
    "config",
    [
        SMALL,
        UNetConfig(**ODD_UNETS["no text"]),
        UNetConfig(**ODD_UNETS["x4 upscaler, narrow"]),
        replace(SMALL, sample_size=None),
        replace(SMALL, sample_size=(8, 4)),
    ],
    ids=["small", "no text", "class labels", "no size", "two sizes"],
)
def test_unet_card(config, tmp_path, monkeypatch):
    torch.manual_seed(0)
    unet = UNet(config)
    torch.nn.init.normal_(unet.conv_out.weight, std=0.1)  # zero at first
    unet.save(tmp_path)
    text = read(tmp_path)
    assert tensors_sha256(UNet.load(tmp_path).state_dict()) in text and "Bound to" not in text
    monkeypatch.chdir(tmp_path)
    first, second = python_blocks(text)
    ours = run(first)
    torch.testing.assert_close(ours["output"], run(second, dict(ours))["output"])


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # in diffusers
def test_pipeline_cards(tmp_path, monkeypatch):
    provenance = {
        "config": {"data": "data/mine", "vae": "runs/vae", "caption_dropout": 0.1, "steps": 900},
        "autoencoder": TRAINED,
        "text_encoder": {"config": {"data": "data/captions"}},
    }
    make_pipeline().save(tmp_path / "model", provenance)
    folder = tmp_path / "model"
    text = read(folder)
    beside = json.loads((folder / "latentsmith.json").read_text())
    for card in (text, read(folder / "unet")):
        assert beside["bindings"]["autoencoder_sha256"] in card
        assert beside["bindings"]["text_encoder_sha256"] in card
        assert "steps: `900`" in card and "vae: `vae`" in card
    assert "made for 32x32 pixels" in text and "10 % of the captions" in text
    assert "guidance_scale=4.0" in text and "rectified flow" in text
    assert json.loads((folder / "vae" / "latentsmith.json").read_text()) == without_paths(TRAINED)
    assert "0.25, -1.5, 0.125, 3" in read(folder / "vae")
    assert "`captions`" in read(folder / "text_encoder")
    monkeypatch.chdir(folder)
    names = run_all(folder / CARD)
    assert names["pictures"][0].size == names["picture"].size == (32, 32)


def test_pipeline_card_without_caption_dropout_advises_against_guidance(tmp_path):
    schedule = ScheduleConfig(zero_terminal_snr=True)
    provenance = {"config": {"caption_dropout": 0.0}}
    make_pipeline(schedule, "velocity").save(tmp_path / "model", provenance)
    text = read(tmp_path / "model")
    assert "guidance_scale=1.0" in text and "not trained on empty captions" in text
    assert "beta from 0.00085 to 0.012, stretched" in text and "the velocity" in text


def test_cards_of_a_training_say_where_each_component_comes_from(world, tmp_path):
    """train_clip.py and train_ldm.py pass it on to the cards of the whole model."""
    Autoencoder.load(world / "vae").save(tmp_path / "vae" / "model", TRAINED)
    train_clip.main(command(train_clip, world, tmp_path / "clip", "--seed", 11))
    parts = ("--vae", tmp_path / "vae", "--text-encoder", tmp_path / "clip")
    train_ldm.main(command(train_ldm, world, tmp_path / "ldm", *parts, "--seed", 12))
    model = tmp_path / "ldm" / "model"
    assert "seed: `7`" in read(model / "vae") and "0.25, -1.5, 0.125, 3" in read(model / "vae")
    assert "seed: `11`" in read(tmp_path / "clip" / "model" / "text_encoder")
    assert "seed: `11`" in read(model / "text_encoder")
    assert "seed: `12`" in read(model) and "seed: `12`" in read(model / "unet")


@pytest.mark.parametrize(
    ("layer", "final_norm"),
    [("last", True), ("last", False), ("penultimate", True), ("penultimate", False)],
)
def test_text_encoder_card(layer, final_norm, tmp_path, monkeypatch):
    small_encoder(max_position_embeddings=16).save(tmp_path / "plain")
    encoder = TextEncoder.load(tmp_path / "plain", layer=layer, final_norm=final_norm)
    encoder.save(tmp_path / "saved")
    folder = tmp_path / "saved" / "text_encoder"
    text = read(folder)
    beside = json.loads((folder / "latentsmith.json").read_text())
    assert beside["sha256"] in text and f"the {beside['layer']} of the" in text
    assert "16 tokens of width 32" in text and "`<|endoftext|>`" in text
    monkeypatch.chdir(folder)
    first, second = python_blocks(text)
    ours = run(first)["context"]
    torch.testing.assert_close(ours, run(second)["context"], rtol=1e-4, atol=1e-5)


def test_a_text_encoder_in_the_current_folder_finds_its_tokenizer(tmp_path, monkeypatch):
    """And not CLIP's own one, which pads with another token."""
    from conditioning.tokenizer import clip_tokenizer

    usual = small_encoder(max_position_embeddings=16)
    tokenizer = clip_tokenizer(16, pad="!")
    TextEncoder(usual.config, usual.tower.state_dict(), tokenizer).save(tmp_path)
    monkeypatch.chdir(tmp_path / "text_encoder")
    assert "filled up with `!`" in read(Path.cwd())
    assert TextEncoder.load(".").tokenizer.pad == "!"


@pytest.mark.parametrize("provenance", [{}, {"config": "by hand"}, {"config": {}, "step": 3}])
def test_a_card_says_that_provenance_is_unknown(provenance):
    assert "not recorded" in training_section(provenance)
