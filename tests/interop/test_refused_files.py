"""Damaged or unsuitable single files: one message with the file, the reason and the content."""

import re

import pytest
import torch

from autoencoder import Autoencoder
from conditioning import TextEncoder
from foundation.errors import UserError
from interop.single_file.reader import HEADER
from ldm import TextToImage
from ldm.unet import UNet
from tests.helpers import compvis_files as compvis
from tests.helpers.compvis_files import AUTOENCODER, UNET, with_prefix, written

CONTENT = {True: "a single-file checkpoint of Stable Diffusion 1.x", False: "Stable Diffusion 1.x"}


@pytest.mark.parametrize(
    ("kind", "tensors", "match"),
    [
        (UNet, {"conditioner.embedders.0.x": 1}, r"\b1 .*conditioner\.embedders\.0\.x"),
        (UNet, {"depth_model.x": 1, "any_model.y": 1}, r"\b2 .*any_model\.y, depth_model\.x"),
        (
            UNet,
            {UNET + "input_blocks.1.1.qkv.weight": 1},
            "1 unexpected: model.*input_blocks.1.1.qkv",
        ),
        (UNet, {UNET + "out.2.bias": None}, "1 missing: model.diffusion_model.out.2.bias "),
        (UNet, {UNET + "input_blocks.0.0.weight": None}, "U-Net"),
        (UNet, {UNET + "out.2.weight": None}, "conv_out.weight"),
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
        (Autoencoder, {AUTOENCODER + "encoder.down.0.block.0.conv1.weight": None}, "autoencoder"),
        (TextEncoder, {}, "text encoder"),
        (TextEncoder, {"cond_stage_model.model.ln_final.bias": 64}, "token_embedding.weight"),
        (TextToImage, {}, "text encoder"),
        (TextToImage, {UNET + "input_blocks.0.0.weight": None}, "U-Net"),
    ],
)
def test_incomplete_components_are_refused(kind, tensors, match, tmp_path):
    complete = compvis.compvis_unet(compvis.make_unet())
    complete |= with_prefix(AUTOENCODER, compvis.compvis_autoencoder(compvis.make_autoencoder()))
    for name, size in tensors.items():
        if size is None:
            del complete[name]
        else:
            complete[name] = torch.zeros(size)
    file = written(tmp_path, complete)
    content = CONTENT[UNET + "input_blocks.0.0.weight" in complete]
    with pytest.raises(UserError, match=rf"{re.escape(str(file))}.*{match}.*{content}") as error:
        kind.load(file)
    assert str(error.value).count(content) == 1


def test_a_width_of_unknown_heads_is_refused(tmp_path):
    theirs = compvis.make_unet(cross_attention_dim=512)
    with pytest.raises(UserError, match=r"heads .*\b512\b"):
        UNet.load(written(tmp_path, compvis.compvis_unet(theirs)))


def test_a_bare_autoencoder_of_16_channels_is_refused(tmp_path):
    theirs = compvis.make_autoencoder(latent_channels=16)
    with pytest.raises(UserError, match=r"\b16 channels.*FLUX"):
        Autoencoder.load(written(tmp_path, compvis.compvis_autoencoder(theirs)))


def test_a_text_encoder_of_unknown_depth_is_refused(tmp_path):
    theirs = compvis.make_text_encoder(act="gelu")
    with pytest.raises(UserError, match=r"\b12 layers.*\b24\b"):
        TextEncoder.load(written(tmp_path, compvis.open_clip_text(theirs, 12)))


def test_the_file_of_a_folder_is_refused_with_the_folder(tmp_path):
    compvis.make_unet().save_pretrained(tmp_path / "unet")
    compvis.make_autoencoder().save_pretrained(tmp_path / "vae")
    for kind, part in ((UNet, "unet"), (Autoencoder, "vae")):
        file = tmp_path / part / "diffusion_pytorch_model.safetensors"
        with pytest.raises(UserError, match=rf"{file}.* {file.parent}\."):
            kind.load(file)


def test_a_header_that_is_no_json_is_refused(tmp_path):
    file = written(tmp_path, compvis.compvis_unet(compvis.make_unet()), **{HEADER: "{"})
    with pytest.raises(UserError, match=f"{file}.*{HEADER}"):
        UNet.load(file)
