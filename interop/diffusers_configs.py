"""The config.json of diffusers' AutoencoderKL and UNet2DConditionModel, as fields of our configs.

A setting that would make a network different from ours is refused, never ignored.
"""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from foundation.errors import UserError

AUTOENCODER_CLASS = "AutoencoderKL"
DOWN_BLOCK, UP_BLOCK = "DownEncoderBlock2D", "UpDecoderBlock2D"

# The values that diffusers uses for fields that a config.json leaves out. The scale of Stable
# Diffusion 1.x, 0.18215, is one of them, because its files are older than the field. Autoencoders
# trained here always state a scale, which is 1 (see autoencoder/training/latent_statistics.py).
AUTOENCODER_DEFAULTS = {
    "in_channels": 3,
    "out_channels": 3,
    "block_out_channels": (64,),
    "layers_per_block": 1,
    "latent_channels": 4,
    "norm_num_groups": 32,
    "use_quant_conv": True,
    "use_post_quant_conv": True,
    "mid_block_add_attention": True,
    "scaling_factor": 0.18215,
    "shift_factor": None,
    "latents_mean": None,
    "latents_std": None,
    "sample_size": 32,
    "force_upcast": True,
}

UNET_CLASS = "UNet2DConditionModel"

# Fields of UNetConfig whose default differs from the value that diffusers uses when a config.json
# leaves them out.
UNET_DEFAULTS = {"cross_attention_dim": 1280, "sample_size": None}

# Settings of diffusers' class that UNetConfig lacks, with their values in every U-Net of Stable
# Diffusion 1.x and 2.x.
UNET_CONSTANTS = {
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


def autoencoder_fields(content: dict[str, Any], source: Path) -> dict[str, Any]:
    """Return the fields of an AutoencoderConfig from the content of a config.json.

    source: the file, for error messages.

    Raises:
        UserError: it describes another network, or has a setting that may make it another one.
    """
    settings = {name: tuple(v) if isinstance(v, list) else v for name, v in content.items()}
    check_autoencoder_settings(settings, source)
    fields = {name: settings.get(name, default) for name, default in AUTOENCODER_DEFAULTS.items()}
    if isinstance(fields["sample_size"], tuple):  # informative only; diffusers also allows (h, w)
        fields["sample_size"] = max(fields["sample_size"])
    return fields


def check_autoencoder_settings(settings: Mapping[str, Any], source: Path) -> None:
    """Refuse settings that would give a network, or latents, unlike ours."""
    widths = settings.get("block_out_channels", AUTOENCODER_DEFAULTS["block_out_channels"])
    supported = {
        "_class_name": (AUTOENCODER_CLASS,),
        "act_fn": ("silu", "swish"),
        "down_block_types": ((DOWN_BLOCK,) * len(widths),),
        "up_block_types": ((UP_BLOCK,) * len(widths),),
    }
    for name, choices in supported.items():
        if name in settings and settings[name] not in choices:
            needed = " or ".join(map(repr, choices))
            raise UserError(f"{source}: {name} is {settings[name]!r}; only {needed} is supported.")
    for name, value in settings.items():
        if name not in (*AUTOENCODER_DEFAULTS, *supported) and not name.startswith("_"):
            raise UserError(
                f"{source}: unknown setting {name} = {value!r}, which may change the network or "
                "its latents. If it has no effect, remove it from the file."
            )


def unet_fields(content: dict[str, Any], fields: Collection[str], source: Path) -> dict[str, Any]:
    """Return the fields of a UNetConfig from the content of a config.json.

    fields: names of the fields of UNetConfig. source: the file, for error messages.

    Raises:
        UserError: it describes another class, or has a setting that U-Nets of Stable Diffusion 1.x
            and 2.x do not have.
    """
    if content.get("_class_name", UNET_CLASS) != UNET_CLASS:
        raise UserError(f"{source} describes a {content['_class_name']}, not a {UNET_CLASS}.")
    known = {name: value for name, value in UNET_DEFAULTS.items() if name in fields}
    unsupported: list[str] = []
    for name, value in content.items():
        if name in fields:
            known[name] = tuple(value) if isinstance(value, list) else value
        elif not name.startswith("_") and not is_unet_constant(name, value):
            unsupported.append(f"{name}={value!r}")
    if unsupported:
        is_xl = content.get("addition_embed_type") == "text_time"
        raise UserError(
            f"{source}: only U-Nets of Stable Diffusion 1.x and 2.x are supported, and they have "
            f"no {', '.join(unsupported)}."
            + " This seems to be the U-Net of Stable Diffusion XL."
            * is_xl
        )
    return known


def is_unet_constant(name: str, value: Any) -> bool:
    """Return whether Stable Diffusion 1.x and 2.x have this value, or each value of this list."""
    values: list[Any] = value if isinstance(value, list) else [value]
    return not values or (
        name in UNET_CONSTANTS and all(each == UNET_CONSTANTS[name] for each in values)
    )
