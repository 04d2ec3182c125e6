"""Single files that are not what they should be: one message, with the reason and the way out."""

import re

import pytest
import torch

from autoencoder import Autoencoder
from conditioning import TextEncoder
from interop.single_file.reader import HEADER
from ldm import TextToImage
from ldm.unet import UNet
from tests.helpers import compvis_files as compvis
from tests.helpers.compvis_files import AUTOENCODER, UNET, with_prefix, written


@pytest.mark.parametrize(
    ("kind", "tensors", "match"),
    [
        (UNet, {"conditioner.embedders.0.x": 1}, "1 tensors in it whose meaning .* conditioner"),
        (UNet, {"depth_model.x": 1, "control_model.y": 1}, "such as control_model.y, depth_model"),
        (
            UNet,
            {UNET + "input_blocks.1.1.qkv.weight": 1},
            "1 unexpected: model.*input_blocks.1.1.qkv",
        ),
        (UNet, {UNET + "out.2.bias": None}, "1 missing: model.diffusion_model.out.2.bias "),
        (UNet, {UNET + "input_blocks.0.0.weight": None}, "no U-Net under CompVis' names"),
        (UNet, {UNET + "out.2.weight": None}, "cannot be built: conv_out.weight is missing"),
        (
            Autoencoder,
            {AUTOENCODER + "encoder.down.0.attn.0.q.weight": 1},
            "1 unexpected: first_stage_model.en",
        ),
        (
            Autoencoder,
            {AUTOENCODER + "encoder.norm_out.bias": None},
            "1 missing: first_stage_model.en",
        ),
        (Autoencoder, {AUTOENCODER + "encoder.down.0.block.0.conv1.weight": None}, "no autoenc"),
        (TextEncoder, {}, "no text encoder of Stable Diffusion 1.x or 2.x"),
        (TextEncoder, {"cond_stage_model.model.ln_final.bias": 64}, "is missing"),
        (TextToImage, {}, "no text encoder"),
        (TextToImage, {UNET + "input_blocks.0.0.weight": None}, "there is no U-Net"),
    ],
)
def test_what_is_no_whole_part_is_refused(kind, tensors, match, tmp_path):
    complete = compvis.compvis_unet(compvis.make_unet())
    complete |= with_prefix(AUTOENCODER, compvis.compvis_autoencoder(compvis.make_autoencoder()))
    for name, size in tensors.items():
        if size is None:
            del complete[name]
        else:
            complete[name] = torch.zeros(size)
    file = written(tmp_path, complete)
    with pytest.raises(
        ValueError, match=rf"(?s){re.escape(str(file))}.*{match}.*seems to be"
    ) as error:
        kind.load(file)
    assert str(error.value).count("seems to be") == 1


def test_a_width_of_unknown_heads_is_refused_with_the_ways_out(tmp_path):
    theirs = compvis.make_unet(cross_attention_dim=512)
    with pytest.raises(ValueError, match=r"heads shows in no shape.*width 512.*diffusers folder"):
        UNet.load(written(tmp_path, compvis.compvis_unet(theirs)))


def test_a_bare_autoencoder_of_16_channels_is_refused_with_the_ways_out(tmp_path):
    theirs = compvis.make_autoencoder(latent_channels=16)
    with pytest.raises(ValueError, match=r"latents of 16 channels shows.*FLUX.*diffusers folder"):
        Autoencoder.load(written(tmp_path, compvis.compvis_autoencoder(theirs)))


def test_a_text_encoder_of_unknown_depth_is_refused(tmp_path):
    theirs = compvis.make_text_encoder(act="gelu")
    with pytest.raises(ValueError, match=r"has 12 layers.*of another number is not known"):
        TextEncoder.load(written(tmp_path, compvis.open_clip_text(theirs, 12)))


def test_the_file_of_a_folder_is_refused_with_the_folder(tmp_path):
    compvis.make_unet().save_pretrained(tmp_path / "unet")
    compvis.make_autoencoder().save_pretrained(tmp_path / "vae")
    for kind, part in ((UNet, "unet"), (Autoencoder, "vae")):
        file = tmp_path / part / "diffusion_pytorch_model.safetensors"
        with pytest.raises(ValueError, match=f"which go with a folder: {file.parent}"):
            kind.load(file)


def test_a_header_that_is_no_json_is_refused(tmp_path):
    file = written(tmp_path, compvis.compvis_unet(compvis.make_unet()), **{HEADER: "{"})
    with pytest.raises(ValueError, match=f"{HEADER} in its header is no JSON"):
        UNet.load(file)
