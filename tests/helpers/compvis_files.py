"""Small models of diffusers and transformers, and their weights with CompVis' names.

The names are tables written by hand, so that the tests share no code with `interop`.
"""

from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

UNET = "model.diffusion_model."
AUTOENCODER = "first_stage_model."
UNET_BLOCKS = """
input_blocks.0.0          conv_in
input_blocks.1.0          down_blocks.0.resnets.0
input_blocks.1.1          down_blocks.0.attentions.0
input_blocks.2.0.op       down_blocks.0.downsamplers.0.conv
input_blocks.3.0          down_blocks.1.resnets.0
input_blocks.3.1          down_blocks.1.attentions.0
input_blocks.4.0.op       down_blocks.1.downsamplers.0.conv
input_blocks.5.0          down_blocks.2.resnets.0
middle_block.0            mid_block.resnets.0
middle_block.1            mid_block.attentions.0
middle_block.2            mid_block.resnets.1
output_blocks.0.0         up_blocks.0.resnets.0
output_blocks.1.0         up_blocks.0.resnets.1
output_blocks.1.1.conv    up_blocks.0.upsamplers.0.conv
output_blocks.2.0         up_blocks.1.resnets.0
output_blocks.2.1         up_blocks.1.attentions.0
output_blocks.3.0         up_blocks.1.resnets.1
output_blocks.3.1         up_blocks.1.attentions.1
output_blocks.3.2.conv    up_blocks.1.upsamplers.0.conv
output_blocks.4.0         up_blocks.2.resnets.0
output_blocks.4.1         up_blocks.2.attentions.0
output_blocks.5.0         up_blocks.2.resnets.1
output_blocks.5.1         up_blocks.2.attentions.1
out.0                     conv_norm_out
out.2                     conv_out
time_embed.0              time_embedding.linear_1
time_embed.2              time_embedding.linear_2
label_emb                 class_embedding
"""
UNET_RESIDUAL_BLOCK = """
in_layers.0               norm1
in_layers.2               conv1
emb_layers.1              time_emb_proj
out_layers.0              norm2
out_layers.3              conv2
skip_connection           conv_shortcut
"""
AUTOENCODER_BLOCKS = """
encoder.conv_in                       encoder.conv_in
encoder.down.0.block.0                encoder.down_blocks.0.resnets.0
encoder.down.0.downsample.conv        encoder.down_blocks.0.downsamplers.0.conv
encoder.down.1.block.0                encoder.down_blocks.1.resnets.0
encoder.mid.block_1                   encoder.mid_block.resnets.0
encoder.mid.attn_1.norm               encoder.mid_block.attentions.0.group_norm
encoder.mid.attn_1.q                  encoder.mid_block.attentions.0.to_q
encoder.mid.attn_1.k                  encoder.mid_block.attentions.0.to_k
encoder.mid.attn_1.v                  encoder.mid_block.attentions.0.to_v
encoder.mid.attn_1.proj_out           encoder.mid_block.attentions.0.to_out.0
encoder.mid.block_2                   encoder.mid_block.resnets.1
encoder.norm_out                      encoder.conv_norm_out
encoder.conv_out                      encoder.conv_out
quant_conv                            quant_conv
post_quant_conv                       post_quant_conv
decoder.conv_in                       decoder.conv_in
decoder.mid.block_1                   decoder.mid_block.resnets.0
decoder.mid.attn_1.norm               decoder.mid_block.attentions.0.group_norm
decoder.mid.attn_1.q                  decoder.mid_block.attentions.0.to_q
decoder.mid.attn_1.k                  decoder.mid_block.attentions.0.to_k
decoder.mid.attn_1.v                  decoder.mid_block.attentions.0.to_v
decoder.mid.attn_1.proj_out           decoder.mid_block.attentions.0.to_out.0
decoder.mid.block_2                   decoder.mid_block.resnets.1
decoder.up.1.block.0                  decoder.up_blocks.0.resnets.0
decoder.up.1.block.1                  decoder.up_blocks.0.resnets.1
decoder.up.1.upsample.conv            decoder.up_blocks.0.upsamplers.0.conv
decoder.up.0.block.0                  decoder.up_blocks.1.resnets.0
decoder.up.0.block.1                  decoder.up_blocks.1.resnets.1
decoder.norm_out                      decoder.conv_norm_out
decoder.conv_out                      decoder.conv_out
"""
OPEN_CLIP_LAYER = """
ln_1                      layer_norm1
ln_2                      layer_norm2
mlp.c_fc                  mlp.fc1
mlp.c_proj                mlp.fc2
attn.out_proj             self_attn.out_proj
"""
FAMILIES = {
    "SD 1.x": {"block_out_channels": (32, 32, 64), "attention_head_dim": 8},
    "SD 2.x": {
        "block_out_channels": (64, 64, 128),
        "attention_head_dim": (1, 1, 2),
        "cross_attention_dim": 1024,
        "use_linear_projection": True,
    },
}


def table(text: str) -> list[tuple[str, str]]:
    """Return the pairs of names in the lines of a text."""
    return [tuple(line.split()) for line in text.strip().splitlines()]


def randomized(module: nn.Module) -> nn.Module:
    """Add noise to all weights, in place.

    Norms and biases start as ones and zeros, with which a swapped pair would go unnoticed.
    """
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return module.eval()


def make_unet(family: str = "SD 1.x", **changes) -> UNet2DConditionModel:
    """Make a small U-Net of a family; changes: settings of diffusers' class."""
    torch.manual_seed(0)
    settings = {
        "layers_per_block": 1,
        "sample_size": 8,
        "cross_attention_dim": 768,
        "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    }
    return randomized(UNet2DConditionModel(**{**settings, **FAMILIES[family], **changes}))


def make_autoencoder(**changes) -> AutoencoderKL:
    """Make a small autoencoder; changes: settings of diffusers' class."""
    torch.manual_seed(1)
    settings = {
        "block_out_channels": (32, 64),
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
    }
    return randomized(AutoencoderKL(**{**settings, **changes}))


def make_text_encoder(width: int = 64, layers: int = 2, act: str = "quick_gelu") -> CLIPTextModel:
    """Make a small text encoder with CLIP's vocabulary."""
    torch.manual_seed(2)
    config = CLIPTextConfig(
        hidden_size=width,
        intermediate_size=96,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        hidden_act=act,
        eos_token_id=49407,
        bos_token_id=49406,
    )
    return randomized(CLIPTextModel(config))


def compvis_unet(model: UNet2DConditionModel) -> dict[str, Tensor]:
    """Return the weights of a U-Net with CompVis' names, prefix included."""
    modules = table(UNET_BLOCKS)
    for compvis, in_diffusers in list(modules):
        if "resnets" in in_diffusers:
            inside = table(UNET_RESIDUAL_BLOCK)
            modules += [(f"{compvis}.{a}", f"{in_diffusers}.{b}") for a, b in inside]
    return {UNET + k: v for k, v in renamed(model.state_dict(), modules).items()}


def compvis_autoencoder(model: AutoencoderKL) -> dict[str, Tensor]:
    """Return the weights of an autoencoder with CompVis' names, without a prefix."""
    weights = {}
    for name, value in renamed(model.state_dict(), table(AUTOENCODER_BLOCKS)).items():
        matrix = "attn_1" in name and value.ndim == 2
        name = name.replace("conv_shortcut", "nin_shortcut")
        weights[name] = value[:, :, None, None].contiguous() if matrix else value
    return weights


def renamed(weights: dict[str, Tensor], modules: list[tuple[str, str]]) -> dict[str, Tensor]:
    """Rename weights by pairs of module names, CompVis' first; the longest module decides."""
    result = {}
    for name, value in weights.items():
        matches = [pair for pair in modules if name.startswith(pair[1] + ".")]
        compvis, in_diffusers = max(matches, key=lambda pair: len(pair[1]))
        result[compvis + name.removeprefix(in_diffusers)] = value
    return result


def hugging_face_text(model: CLIPTextModel) -> dict[str, Tensor]:
    """Return the weights of a text encoder as single files of Stable Diffusion 1.x have them."""
    prefix = "cond_stage_model.transformer.text_model."
    weights = model.state_dict().items()
    return {prefix + name.removeprefix("text_model."): value for name, value in weights}


def open_clip_text(model: CLIPTextModel, layers: int = 24) -> dict[str, Tensor]:
    """Return the weights of a text encoder as single files of Stable Diffusion 2.x have them.

    layers: how many are in the file; those that the model lacks are unused.
    """
    source = {k.removeprefix("text_model."): v for k, v in model.state_dict().items()}
    weights = {
        "token_embedding.weight": source["embeddings.token_embedding.weight"],
        "positional_embedding": source["embeddings.position_embedding.weight"],
        "ln_final.weight": source["final_layer_norm.weight"],
        "ln_final.bias": source["final_layer_norm.bias"],
        "text_projection": torch.randn(8, 8),
        "logit_scale": torch.tensor(4.6),
    }
    used = model.config.num_hidden_layers
    for layer in range(layers):
        old, new = f"encoder.layers.{layer % used}", f"transformer.resblocks.{layer}"
        for kind in ("weight", "bias"):
            thirds = [source[f"{old}.self_attn.{x}_proj.{kind}"] for x in "qkv"]
            weights[f"{new}.attn.in_proj_{kind}"] = torch.cat(thirds) + (layer >= used)
            for name, hugging_face in table(OPEN_CLIP_LAYER):
                value = source[f"{old}.{hugging_face}.{kind}"]
                weights[f"{new}.{name}.{kind}"] = value + (layer >= used)
    return {f"cond_stage_model.model.{k}": v for k, v in weights.items()}


def with_prefix(prefix: str, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Add a prefix to all names."""
    return {prefix + name: value for name, value in weights.items()}


def written(folder: Path, tensors: dict[str, Tensor], **metadata: str) -> Path:
    """Write a safetensors file in the folder, and return its path."""
    file = folder / "model.safetensors"
    save_file({k: v.contiguous().clone() for k, v in tensors.items()}, file, metadata or None)
    return file
