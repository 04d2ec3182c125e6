"""Weights are identified: models of diffusers, transformers and open_clip, and single files."""

import diffusers
import open_clip
import pytest
import torch
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    T5Config,
    T5EncoderModel,
)

from interop.state_dict_check import class_hint, identify_weights

SMALL = {"block_out_channels": (8, 16), "norm_num_groups": 8, "layers_per_block": 1}
UNET = {
    **SMALL,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "attention_head_dim": 2,
}
VAE = {
    **SMALL,
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
}
VECTORS = {
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 4,
    "projection_class_embeddings_input_dim": 40,
}
UPSCALER = {"num_class_embeds": 1000, "in_channels": 7, "cross_attention_dim": 1024}
CLIP_SMALL = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
CLIP_SMALL |= {"num_attention_heads": 1}


def unet(**settings) -> diffusers.UNet2DConditionModel:
    return diffusers.UNet2DConditionModel(**{**UNET, **settings})


MODELS = {
    "the U-Net of Stable Diffusion 1.x": lambda: unet(cross_attention_dim=768),
    "the U-Net of Stable Diffusion 2.x": lambda: unet(cross_attention_dim=1024),
    "the U-Net of Stable Diffusion XL": lambda: unet(cross_attention_dim=2048, **VECTORS),
    "the U-Net of the refiner of Stable Diffusion XL": lambda: unet(
        cross_attention_dim=1280, **VECTORS
    ),
    "the U-Net of Stable Diffusion 1.x with 9 input channels (inpainting)": lambda: unet(
        cross_attention_dim=768, in_channels=9
    ),
    "the U-Net of the x4 upscaler of Stable Diffusion 2 with 7 input channels": lambda: unet(
        **UPSCALER
    ),
    "the U-Net of a text-to-image model with text embeddings of width 24": lambda: unet(
        cross_attention_dim=24
    ),
    "an AutoencoderKL with latents of 16 channels": lambda: diffusers.AutoencoderKL(
        **VAE, latent_channels=16
    ),
    "a VQ autoencoder": lambda: diffusers.VQModel(**VAE, num_vq_embeddings=4),
    "an AutoencoderTiny": lambda: diffusers.AutoencoderTiny(),
    "an autoencoder of videos": lambda: diffusers.AutoencoderKLCogVideoX(),
    "a ControlNet": lambda: diffusers.ControlNetModel(cross_attention_dim=768),
    "a transformer of Stable Diffusion 3": lambda: diffusers.SD3Transformer2DModel(num_layers=1),
    "a transformer of FLUX's kind": lambda: diffusers.FluxTransformer2DModel(
        num_layers=1, num_single_layers=1
    ),
    "a text encoder (CLIPTextModel)": lambda: CLIPTextModel(CLIPTextConfig(**CLIP_SMALL)),
    "a CLIP of Hugging Face with both its towers": lambda: CLIPModel(
        CLIPConfig(text_config=CLIP_SMALL, vision_config=CLIP_SMALL)
    ),
    "a text encoder (T5)": lambda: T5EncoderModel(T5Config(num_layers=1)),
    "a CLIP of open_clip with both its towers": lambda: open_clip.CLIP(
        **open_clip.get_model_config("ViT-B-32")
    ),
}


@pytest.mark.parametrize("content", MODELS)
def test_models_of_other_libraries_are_identified(content):
    with torch.device("meta"):
        model = MODELS[content]()
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert identify_weights(shapes).startswith(content)


ATTENTION = "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
COMPVIS_UNET = {
    "time_embed.0.weight": (1280, 320),
    "input_blocks.0.0.weight": (320, 4, 3, 3),
    ATTENTION: (320, 768),
}
COMPVIS_VAE = {
    "decoder.conv_in.weight": (512, 4, 3, 3),
    "encoder.conv_in.weight": (128, 3, 3, 3),
    "encoder.down.0.block.0.norm1.weight": (128,),
}


def within(prefix: str, shapes: dict) -> dict:
    return {prefix + name: shape for name, shape in shapes.items()}


WHOLE = {
    **within("first_stage_model.", COMPVIS_VAE),
    "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight": (49408, 768),
    **within("model.diffusion_model.", COMPVIS_UNET),
}
XL = {
    f"model.diffusion_model.{ATTENTION}": (640, 2048),
    "model.diffusion_model.label_emb.0.0.weight": (1280, 2816),
}
INPAINTING = {"model.diffusion_model.input_blocks.0.0.weight": (320, 9, 3, 3)}


@pytest.mark.parametrize(
    ("shapes", "content"),
    [
        (WHOLE, "a single-file checkpoint of Stable Diffusion 1.x"),
        ({**WHOLE, **XL}, "a single-file checkpoint of Stable Diffusion XL"),
        (
            {**WHOLE, **INPAINTING},
            "a single-file checkpoint of Stable Diffusion 1.x with 9 input channels (inpainting)",
        ),
        (COMPVIS_UNET, "the U-Net of Stable Diffusion 1.x with CompVis' names"),
        (COMPVIS_VAE, "an autoencoder with CompVis' names with latents of 4 channels"),
        ({**COMPVIS_VAE, "quantize.embedding.weight": (8192, 4)}, "a VQ autoencoder"),
        ({"transformer.resblocks.0.ln_1.weight": (512,)}, "a text encoder of open_clip"),
        ({"unet.down_blocks.0.attn1.to_q.lora_A.weight": (4, 320)}, "a LoRA"),
        ({"lora_unet_down_blocks_0.lora_up.weight": (320, 4)}, "a LoRA"),
        (within("control_model.", COMPVIS_UNET), "a ControlNet"),
        ({"0/state/3/exp_avg": (8, 8)}, "the state of an optimizer"),
        ({"emb_params": (2, 768)}, "an embedding of textual inversion"),
        ({"model.diffusion_model.joint_blocks.0.x": (1,)}, "a transformer of Stable Diffusion 3"),
        ({"time_embedding.linear_1.weight": (2,)}, "a U-Net without text"),
        ({"conv.weight": (1,)}, "no model that is supported"),
        ({}, "empty"),
    ],
)
def test_names_of_public_files_are_identified(shapes, content):
    assert identify_weights(shapes).startswith(content)


def test_the_class_in_the_json_of_a_folder_is_named(tmp_path):
    assert class_hint(tmp_path) == ""
    (tmp_path / "config.json").write_text('{"steps": 3}')  # of a run of ours
    assert class_hint(tmp_path) == ""
    (tmp_path / "config.json").write_text("not JSON")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    assert class_hint(tmp_path) == " Its model/model_index.json names the class FluxPipeline."
    (tmp_path / "config.json").write_text('{"architectures": null, "model_type": "t5"}')
    assert class_hint(tmp_path) == " Its config.json names the class t5."
