"""Autoencoder folders: exchange with diffusers in both directions, and what is refused."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from autoencoder import PRESETS, Autoencoder, AutoencoderConfig
from autoencoder.io import CARD, CONFIG, PROVENANCE, WEIGHTS, read_provenance
from foundation.errors import MissingFileError, UserError
from tests.helpers.autoencoders import make_diffusers
from tests.helpers.peer_settings import PUBLISHED_AUTOENCODERS

CONFIG_SMALL = AutoencoderConfig(
    block_out_channels=(8, 16), norm_num_groups=8, layers_per_block=1, scaling_factor=1.0
)


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    Autoencoder(CONFIG_SMALL).save(tmp_path / "model", {"step": 7})
    return tmp_path / "model"


def edit(path, **changes):
    """Change entries of a JSON file; the value "REMOVE" removes one."""
    content = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({k: v for k, v in content.items() if v != "REMOVE"}))


def test_diffusers_loads_what_we_save(folder):
    from diffusers import AutoencoderKL

    theirs, info = AutoencoderKL.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    ours = Autoencoder.load(folder)
    images = torch.rand(1, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        latents = ours.encode(images).mode()
        torch.testing.assert_close(latents, theirs.encode(images).latent_dist.mode())
        torch.testing.assert_close(ours.decode(latents), theirs.decode(latents).sample)
    assert theirs.config.scaling_factor == 1.0


def test_we_load_what_diffusers_saves(tmp_path):
    config = AutoencoderConfig(
        block_out_channels=(8, 16), norm_num_groups=8, layers_per_block=1,
        scaling_factor=0.3611, shift_factor=0.1159, use_quant_conv=False,
    )  # fmt: skip
    theirs = make_diffusers(config)
    theirs.save_pretrained(tmp_path / "vae")
    ours = Autoencoder.load(tmp_path)  # a pipeline folder
    assert ours.config == config
    images = torch.rand(1, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        expected = (theirs.encode(images).latent_dist.mode() - 0.1159) * 0.3611
        torch.testing.assert_close(ours.encode(images).mode(), expected)


def test_a_loaded_autoencoder_is_the_saved_one(folder):
    torch.manual_seed(0)
    original = Autoencoder(CONFIG_SMALL).state_dict()
    loaded = Autoencoder.load(folder.parent)  # a run folder
    assert all(torch.equal(original[key], value) for key, value in loaded.state_dict().items())
    assert all(p.requires_grad for p in loaded.parameters()) and not loaded.training
    assert read_provenance(folder) == {"step": 7}


def test_channels_last_weights_can_be_saved(folder):
    autoencoder = Autoencoder.load(folder).to(memory_format=torch.channels_last)
    before = Autoencoder.load(folder).sha256
    autoencoder.save(folder)
    assert Autoencoder.load(folder).sha256 == before


def test_hash_is_of_the_weights_alone(folder, tmp_path):
    autoencoder = Autoencoder.load(folder)
    autoencoder.save(tmp_path / "vae", {"other": "provenance"})
    assert Autoencoder.load(tmp_path / "vae").sha256 == Autoencoder.load(folder).sha256
    half = Autoencoder.load(folder).half()
    half.save(tmp_path / "half")
    assert Autoencoder.load(tmp_path / "half").sha256 == half.sha256 != autoencoder.sha256
    with torch.no_grad():
        autoencoder.decoder.conv_out.bias[0] += 1
    autoencoder.save(tmp_path / "vae")
    assert Autoencoder.load(tmp_path / "vae").sha256 != Autoencoder.load(folder).sha256


def test_old_attention_names_are_read(folder):
    weights = load_file(folder / WEIGHTS)
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    expected = Autoencoder.load(folder).state_dict()
    for new, name in old.items():
        weights = {key.replace(f".{new}.", f".{name}."): value for key, value in weights.items()}
    assert any(".proj_attn." in key for key in weights)
    save_file(weights, folder / WEIGHTS)
    loaded = Autoencoder.load(folder).state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in expected.items())


@pytest.mark.parametrize(
    "content", PUBLISHED_AUTOENCODERS.values(), ids=PUBLISHED_AUTOENCODERS.keys()
)
def test_published_configs_are_read_and_survive_saving(content, tmp_path):
    from diffusers import AutoencoderKL

    AutoencoderKL.from_config(content).save_pretrained(tmp_path / "theirs")
    (tmp_path / "theirs" / CONFIG).write_text(json.dumps(content))
    autoencoder = Autoencoder.load(tmp_path / "theirs")
    assert autoencoder.config.scaling_factor == content.get("scaling_factor", 0.18215)
    assert autoencoder.config.shift_factor == content.get("shift_factor")
    autoencoder.save(tmp_path / "ours")
    assert Autoencoder.load(tmp_path / "ours").config == autoencoder.config
    theirs = AutoencoderKL.from_pretrained(tmp_path / "ours").config
    assert theirs.latents_std == content.get("latents_std")
    assert theirs.scaling_factor == autoencoder.config.scaling_factor


def test_half_precision_files_are_read_as_float32(folder):
    save_file({k: v.half() for k, v in load_file(folder / WEIGHTS).items()}, folder / WEIGHTS)
    assert Autoencoder.load(folder).dtype == torch.float32


def test_missing_scaling_factor_is_that_of_stable_diffusion(folder):
    edit(folder / CONFIG, scaling_factor="REMOVE")
    assert Autoencoder.load(folder).config.scaling_factor == 0.18215


@pytest.mark.parametrize(
    "change",
    [
        {"latents_mean": [0.0] * 4},  # without latents_std
        {"act_fn": "relu"},
        {"down_block_types": ["DownEncoderBlock2D", "AttnDownEncoderBlock2D"]},
        {"_class_name": "VQModel"},
        {"temporal_compression": 4},
    ],
)
def test_unsupported_settings_are_named(folder, change):
    edit(folder / CONFIG, **change)
    with pytest.raises(UserError, match=next(iter(change))):
        Autoencoder.load(folder)


def test_other_weights_are_described_in_one_message(folder):
    edit(folder / CONFIG, block_out_channels=[8, 24], layers_per_block=2)
    with pytest.raises(UserError, match=r"down_blocks\.1.*AutoencoderKL"):
        Autoencoder.load(folder)
    save_file({"time_embedding.linear_1.weight": torch.zeros(2)}, folder / WEIGHTS)
    with pytest.raises(UserError, match="U-Net"):
        Autoencoder.load(folder)


def test_missing_folders_and_files_are_reported(tmp_path, folder):
    with pytest.raises(MissingFileError, match="nowhere"):
        Autoencoder.load(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(MissingFileError, match=WEIGHTS) as no_model:
        Autoencoder.load(tmp_path / "empty")
    (tmp_path / "empty" / "state").mkdir()
    with pytest.raises(MissingFileError, match=WEIGHTS) as unfinished_run:
        Autoencoder.load(tmp_path / "empty")
    assert str(no_model.value) != str(unfinished_run.value)
    (folder / CONFIG).unlink()
    with pytest.raises(MissingFileError, match=r"config\.json"):
        Autoencoder.load(folder)


def test_truncated_weights_are_reported(folder):
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:1000])
    with pytest.raises(UserError, match=WEIGHTS):
        Autoencoder.load(folder)


def test_failed_save_leaves_what_was_there(folder, monkeypatch):
    def full(*_, **__):
        raise OSError("No space left on device")

    before = Autoencoder.load(folder).sha256
    monkeypatch.setattr("interop.safetensors_io.save_file", full)
    other = Autoencoder(PRESETS["tiny-32"])
    for target in (folder, folder.with_name("new")):
        with pytest.raises(OSError, match="No space"):
            other.save(target)
    assert Autoencoder.load(folder).sha256 == before
    written = [CARD, CONFIG, WEIGHTS, PROVENANCE]
    assert sorted(p.name for p in folder.iterdir()) == sorted(written)
    assert not folder.with_name("new").exists()
