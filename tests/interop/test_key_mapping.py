"""Key mapping: round trips for any number of blocks, and names that diffusers itself reads.

Networks of full size are on the meta device, which stores no values.
"""

from dataclasses import replace

import diffusers
import pytest
import torch
from diffusers.loaders import single_file_utils as peer
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel

from autoencoder import PRESETS as AUTOENCODERS
from autoencoder import Autoencoder, AutoencoderConfig
from conditioning.text_model import TextTowerConfig, empty_tower, to_hugging_face
from interop.key_mapping import invert, rename_key, rename_keys
from interop.single_file import compvis_autoencoder, compvis_text, compvis_unet
from interop.single_file.writer import to_single_file
from ldm.unet import PRESETS as UNETS
from ldm.unet import UNet, UNetConfig
from tests.helpers.compvis_files import AUTOENCODER, UNET

# Round trips

levels = st.lists(st.tuples(st.integers(1, 4), st.booleans()), min_size=1, max_size=5)


def unet_keys(down: list[tuple[int, bool]], up: list[tuple[int, bool]], mid: bool) -> set[str]:
    """Return diffusers' keys of a U-Net whose levels have (layers, transformers or not)."""
    modules = {"conv_in", "conv_norm_out", "conv_out", "class_embedding"}
    modules |= {f"time_embedding.linear_{i}" for i in (1, 2)}
    blocks = {"mid_block.resnets.0", "mid_block.resnets.1"}
    attentions = {"mid_block.attentions.0"} if mid else set()
    for half, resampler, halves in (("down", "downsamplers", down), ("up", "upsamplers", up)):
        for i, (layers, attends) in enumerate(halves):
            blocks |= {f"{half}_blocks.{i}.resnets.{k}" for k in range(layers)}
            if attends:
                attentions |= {f"{half}_blocks.{i}.attentions.{k}" for k in range(layers)}
            if i < len(halves) - 1:
                modules.add(f"{half}_blocks.{i}.{resampler}.0.conv")
    for block in blocks:
        modules |= {f"{block}.{name}" for name in ("norm1", "conv1", "time_emb_proj", "norm2")}
        modules |= {f"{block}.conv2", f"{block}.conv_shortcut"}
    for attention in attentions:
        modules |= {f"{attention}.proj_in", f"{attention}.transformer_blocks.0.attn2.to_out.0"}
    return {f"{module}.{kind}" for module in modules for kind in ("weight", "bias")}


@given(levels, levels, st.booleans())
def test_keys_of_any_unet_survive_a_round_trip(down, up, mid):
    weights = {key: key for key in unet_keys(down, up, mid)}
    compvis = compvis_unet.to_compvis(weights)
    assert len(compvis) == len(weights)  # no two became one
    assert not [key for key in compvis if "resnets" in key or "attentions" in key]
    blocks = {int(key.split(".")[1]) for key in compvis if key.startswith("input_blocks.")}
    assert blocks == set(range(sum(layers for layers, _ in down) + len(down)))
    blocks = {int(key.split(".")[1]) for key in compvis if key.startswith("output_blocks.")}
    assert blocks == set(range(sum(layers for layers, _ in up)))
    assert compvis_unet.from_compvis(compvis) == weights


@given(st.integers(1, 6), st.integers(1, 5), st.booleans())
def test_keys_of_any_autoencoder_survive_a_round_trip(levels, layers, attention):
    config = AutoencoderConfig(
        block_out_channels=(8,) * levels,
        layers_per_block=layers,
        norm_num_groups=4,
        mid_block_add_attention=attention,
    )
    with torch.device("meta"):
        weights = Autoencoder(config).state_dict()
    compvis = compvis_autoencoder.to_compvis(weights)
    assert len(compvis) == len(weights)
    assert not [key for key in compvis if "resnets" in key or "_blocks." in key]
    assert shapes(compvis_autoencoder.from_compvis(compvis)) == shapes(weights)
    assert compvis_autoencoder.infer_config(shapes(weights))["layers_per_block"] == layers


names = st.lists(st.text("ab1", min_size=1, max_size=2), min_size=1, max_size=3).map(".".join)


@given(st.dictionaries(names, names), st.dictionaries(names, st.integers()))
def test_only_whole_modules_are_renamed(table, weights):
    for name in weights:
        prefixes = [module for module in table if f"{name}.".startswith(f"{module}.")]
        if not prefixes:
            assert rename_key(name, table) == name
        else:
            module = max(prefixes, key=len)
            assert rename_key(name, table) == table[module] + name[len(module) :]


@given(st.dictionaries(names, st.integers()))
def test_a_table_and_its_inverse_cancel(weights):
    table = {name: f"module{i}" for i, name in enumerate(weights)}
    assert rename_keys(rename_keys(weights, table), invert(table)) == weights


# Names that diffusers reads


def shapes(weights: dict[str, Tensor]) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in weights.items()}


@pytest.mark.parametrize("preset", ["sd15", "sd21"])
def test_every_name_of_the_unet_is_read_by_diffusers(preset):
    with torch.device("meta"):
        theirs = diffusers.UNet2DConditionModel(**vars(UNETS[preset]))
        weights = UNet(UNETS[preset]).state_dict()
    file, _ = to_single_file({"unet": ({}, weights)}, {})
    assert len(file) == len(weights) == 686
    read = peer.convert_ldm_unet_checkpoint(dict(file), dict(theirs.config))
    assert shapes(read) == shapes(theirs.state_dict())
    bare = {k[len(UNET) :]: v for k, v in file.items()}
    assert shapes(compvis_unet.from_compvis(bare)) == shapes(weights)
    inferred = UNetConfig(**compvis_unet.infer_config(shapes(weights)))
    assert replace(inferred, sample_size=UNETS[preset].sample_size) == UNETS[preset]


def test_the_config_of_the_x4_upscaler_is_inferred():
    config = UNetConfig(
        in_channels=7,
        sample_size=128,
        block_out_channels=(256, 512, 512, 1024),
        down_block_types=("DownBlock2D",) + ("CrossAttnDownBlock2D",) * 3,
        up_block_types=("CrossAttnUpBlock2D",) * 3 + ("UpBlock2D",),
        # The published config has True for the first level, too, which has no attention.
        only_cross_attention=(False, True, True, False),
        cross_attention_dim=1024,
        use_linear_projection=True,
        num_class_embeds=1000,
    )
    with torch.device("meta"):
        weights = compvis_unet.to_compvis(UNet(config).state_dict())
    assert weights["label_emb.weight"].shape == (1000, 1024)
    inferred = compvis_unet.infer_config(shapes(compvis_unet.from_compvis(weights)))
    assert UNetConfig(**inferred) == config


def test_every_name_of_the_autoencoder_is_read_by_diffusers():
    with torch.device("meta"):
        autoencoder = Autoencoder(AUTOENCODERS["sd15"])
        weights = autoencoder.state_dict()
        theirs = diffusers.AutoencoderKL(
            block_out_channels=autoencoder.config.block_out_channels,
            layers_per_block=2,
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
        )
    file, _ = to_single_file({"vae": ({}, weights)}, {})
    assert len(file) == len(weights) == 248
    read = peer.convert_ldm_vae_checkpoint(dict(file), dict(theirs.config))
    assert shapes(read) == shapes(theirs.state_dict())
    bare = {k[len(AUTOENCODER) :]: v for k, v in file.items()}
    assert shapes(compvis_autoencoder.from_compvis(bare)) == shapes(weights)
    inferred = AutoencoderConfig(**compvis_autoencoder.infer_config(shapes(weights)))
    assert replace(inferred, sample_size=512) == AUTOENCODERS["sd15"]


@pytest.mark.parametrize(
    ("act", "width", "layers", "heads"), [("quick_gelu", 768, 12, 12), ("gelu", 1024, 23, 16)]
)
def test_every_name_of_the_text_encoder_is_read_by_diffusers(act, width, layers, heads):
    settings = {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "hidden_act": act,
    }
    weights = empty_tower(TextTowerConfig(**settings)).state_dict()
    if act == "quick_gelu":
        weights = to_hugging_face(weights)
    file, _ = to_single_file({"text_encoder": ({}, weights)}, {})
    with torch.device("meta"):
        theirs = CLIPTextModel(CLIPTextConfig(**settings))
    if act == "quick_gelu":
        read = peer.convert_ldm_clip_checkpoint(dict(file))
        assert len(read) == len(file)
    else:
        assert compvis_text.count_layers(file) == layers + 1
        read = peer.convert_open_clip_checkpoint(theirs, dict(file))
    prefix = compvis_text.find_prefix(shapes(file))
    names = compvis_text.tower_keys(shapes(file), prefix)
    inferred = compvis_text.infer_config({names[k]: v.shape for k, v in file.items()}, prefix)
    assert settings.items() <= inferred.items()
    read = {name.removeprefix("text_model."): value for name, value in read.items()}
    expected = {k.removeprefix("text_model."): v for k, v in theirs.state_dict().items()}
    assert shapes(read) == shapes(expected)
