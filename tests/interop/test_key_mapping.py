"""Every name in a single file of full size is one that diffusers reads; no memory for numbers."""

from dataclasses import replace

import diffusers
import pytest
import torch
from diffusers.loaders import single_file_utils as peer
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel

from autoencoder import PRESETS as AUTOENCODERS
from autoencoder import Autoencoder, AutoencoderConfig
from conditioning.text_model import TextTowerConfig, empty_tower, to_hugging_face
from interop.single_file import compvis_autoencoder, compvis_text, compvis_unet
from interop.single_file.writer import to_single_file
from ldm.unet import PRESETS as UNETS
from ldm.unet import UNet, UNetConfig
from tests.helpers.compvis_files import AUTOENCODER, UNET


def shapes(weights: dict[str, Tensor]) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in weights.items()}


@pytest.mark.parametrize("preset", ["sd15", "sd21"])
def test_every_name_of_the_unet_is_known_to_diffusers(preset):
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


def test_the_x4_upscaler_is_told_by_its_shapes():
    config = UNetConfig(
        in_channels=7,
        sample_size=128,
        block_out_channels=(256, 512, 512, 1024),
        down_block_types=("DownBlock2D",) + ("CrossAttnDownBlock2D",) * 3,
        up_block_types=("CrossAttnUpBlock2D",) * 3 + ("UpBlock2D",),
        only_cross_attention=(False, True, True, False),  # published as True for the first, too,
        cross_attention_dim=1024,  # which has no attention
        use_linear_projection=True,
        num_class_embeds=1000,
    )
    with torch.device("meta"):
        weights = compvis_unet.to_compvis(UNet(config).state_dict())
    assert weights["label_emb.weight"].shape == (1000, 1024)
    inferred = compvis_unet.infer_config(shapes(compvis_unet.from_compvis(weights)))
    assert UNetConfig(**inferred) == config


def test_every_name_of_the_autoencoder_is_known_to_diffusers():
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
def test_every_name_of_the_text_encoder_is_known_to_diffusers(act, width, layers, heads):
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
