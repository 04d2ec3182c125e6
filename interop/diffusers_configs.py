"""What a config.json of diffusers' UNet2DConditionModel means."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

from foundation.errors import UserError

CLASS_NAME = "UNet2DConditionModel"

# Fields whose meaning, when a config.json leaves them out, is not our own default.
DEFAULTS = {"cross_attention_dim": 1280, "sample_size": None}

# What diffusers' class can do beyond the U-Nets of SD 1.x and 2.x, with the values these have.
FIXED = {
    "act_fn": "silu",
    "addition_embed_type": None,
    "addition_embed_type_num_heads": 64,
    "addition_time_embed_dim": None,
    "attention_type": "default",
    "center_input_sample": False,
    "class_embeddings_concat": False,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "cross_attention_norm": None,
    "downsample_padding": 1,
    "dual_cross_attention": False,
    "encoder_hid_dim": None,
    "encoder_hid_dim_type": None,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "mid_block_only_cross_attention": None,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-5,
    "num_attention_heads": None,
    "projection_class_embeddings_input_dim": None,
    "resnet_out_scale_factor": 1,
    "resnet_skip_time_act": False,
    "resnet_time_scale_shift": "default",
    "reverse_transformer_layers_per_block": None,
    "time_cond_proj_dim": None,
    "time_embedding_act_fn": None,
    "time_embedding_dim": None,
    "time_embedding_type": "positional",
    "timestep_post_act": None,
    "transformer_layers_per_block": 1,
}


def unet_fields(content: dict[str, Any], fields: Collection[str], source: Path) -> dict[str, Any]:
    """The entries that a UNetConfig has. All others must be as in every SD 1.x and 2.x U-Net.

    fields: the names of UNetConfig's. source: the config.json, for messages.
    """
    if content.get("_class_name", CLASS_NAME) != CLASS_NAME:
        raise UserError(f"{source} describes a {content['_class_name']}, not a {CLASS_NAME}.")
    known = {name: value for name, value in DEFAULTS.items() if name in fields}
    unsupported = []
    for name, value in content.items():
        values = value if isinstance(value, list) else [value]
        if name in fields:
            known[name] = tuple(value) if isinstance(value, list) else value
        elif not name.startswith("_") and any(
            name not in FIXED or one != FIXED[name] for one in values
        ):
            unsupported.append(f"{name}={value!r}")
    if unsupported:
        xl = content.get("addition_embed_type") == "text_time"
        raise UserError(
            f"{source}: the U-Net here is that of Stable Diffusion 1.x and 2.x, which has no "
            + ", ".join(unsupported)
            + ". This seems to be the U-Net of Stable Diffusion XL." * xl
        )
    return known
