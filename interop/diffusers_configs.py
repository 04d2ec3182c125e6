"""The config.json of diffusers' AutoencoderKL and UNet2DConditionModel, as fields of our configs.

A setting that would make a network different from ours is refused, never ignored.
"""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, cast

from foundation.errors import UserError, listed, one_line, shown
from foundation.json_reading import check_type
from foundation.run_kind import run_hint

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
OF_SDXL = {"addition_embed_type": "text_time"}  # fields that we have, with a value that we lack
MEANS_FALSE = ("mid_block_only_cross_attention",)  # constants for which null means false


def autoencoder_fields(content: dict[str, Any], source: Path) -> dict[str, Any]:
    """Return the fields of an AutoencoderConfig from the content of a config.json.

    source: the file, for error messages.

    Raises:
        UserError: it describes another network, or has a setting that may make it another one.
    """
    settings = {name: as_tuple(value) for name, value in content.items()}
    check_autoencoder_settings(settings, source)
    fields = {name: settings.get(name, default) for name, default in AUTOENCODER_DEFAULTS.items()}
    if isinstance(fields["sample_size"], tuple):  # informative only; diffusers also allows (h, w)
        sides = check_type(fields["sample_size"], tuple[int, int], source, "sample_size")
        fields["sample_size"] = max(sides)
    return fields


def as_tuple(value: Any) -> Any:
    """Return lists as tuples, and everything else as it is."""
    return tuple(cast(list[Any], value)) if isinstance(value, list) else value


def check_autoencoder_settings(settings: Mapping[str, Any], source: Path) -> None:
    """Refuse settings that would give a network, or latents, unlike ours."""
    widths = settings.get("block_out_channels", AUTOENCODER_DEFAULTS["block_out_channels"])
    levels = len(check_type(widths, tuple[int, ...], source, "block_out_channels"))
    supported = {
        "_class_name": (AUTOENCODER_CLASS,),
        "act_fn": ("silu", "swish"),
        "down_block_types": ((DOWN_BLOCK,) * levels,),
        "up_block_types": ((UP_BLOCK,) * levels,),
    }
    for name, choices in supported.items():
        if name in settings and settings[name] not in choices:
            needed = " or ".join(map(shown, choices))
            raise UserError(
                f"{source}: {name} is {shown(settings[name])}; only {needed} is supported."
            )
    for name, value in settings.items():
        if name not in (*AUTOENCODER_DEFAULTS, *supported) and not name.startswith("_"):
            raise UserError(
                f"{source}: unknown setting {one_line(name, 80)} = {shown(value)}, which may "
                "change the network or its latents. If it has no effect, remove it from the file."
            )


def unet_fields(content: dict[str, Any], fields: Collection[str], source: Path) -> dict[str, Any]:
    """Return the fields of a UNetConfig from the content of a config.json.

    fields: names of the fields of UNetConfig. source: the file, for error messages.

    Raises:
        UserError: it describes another class, or has a setting that U-Nets of Stable Diffusion 1.x
            and 2.x do not have.
    """
    if content.get("_class_name", UNET_CLASS) != UNET_CLASS:
        raise UserError(
            f"{source} describes {one_line(content['_class_name'], 80)}; needed is "
            f"{UNET_CLASS}.{run_hint(source.parent.parent, 'train_ldm.py')}"
        )
    known = {name: value for name, value in UNET_DEFAULTS.items() if name in fields}
    unsupported: list[str] = []
    for name, value in content.items():
        if name in fields and not (name in OF_SDXL and value == OF_SDXL[name]):
            known[name] = as_tuple(value)
        elif not name.startswith("_") and not is_unet_constant(name, value):
            unsupported.append(f"{one_line(name, 80)}={shown(value)}")
    if unsupported:
        is_xl = all(content.get(name) == value for name, value in OF_SDXL.items())
        raise UserError(
            f"{source}: only U-Nets of Stable Diffusion 1.x and 2.x are supported, and they have "
            f"no {listed(unsupported)}."
            + " This seems to be the U-Net of Stable Diffusion XL."
            * is_xl
        )
    known["cross_attention_dim"] = context_width(known, source)
    return known


def context_width(fields: Mapping[str, Any], source: Path) -> Any:
    """Return the one width of the context, where a file gives a width for each level.

    diffusers builds one network of them, and it runs if all levels that read the context agree.
    """
    widths = fields["cross_attention_dim"]
    if not isinstance(widths, tuple):
        return widths
    check_type(widths, tuple[int, ...], source, "cross_attention_dim")
    down, up = (as_tuple(fields.get(f"{half}_block_types", ())) for half in ("down", "up"))
    reading = {
        width
        for blocks, each in ((down, widths), (up, widths[::-1]))
        for block, width in zip(blocks if isinstance(blocks, tuple) else (), each, strict=False)
        if "CrossAttn" in str(block)
    }
    if "CrossAttn" in str(fields.get("mid_block_type", "CrossAttn")):
        reading |= set(widths[-1:])
    if len(reading) > 1 or not widths:
        raise UserError(
            f"{source}: cross_attention_dim is {shown(list(widths))}, but a context has one width, "
            "so all levels that attend to it need the same one."
        )
    return next(iter(reading or widths))


def is_unet_constant(name: str, value: Any) -> bool:
    """Return whether Stable Diffusion 1.x and 2.x have this value, or each value of this list."""
    values: list[Any] = cast(list[Any], value) if isinstance(value, list) else [value]
    if name not in UNET_CONSTANTS:
        return not values
    constant = UNET_CONSTANTS[name]
    same = (constant, False) if name in MEANS_FALSE else (constant,)
    # 1 == True in Python, but not in a file.
    return all(
        any(each == one and isinstance(each, bool) == isinstance(one, bool) for one in same)
        for each in values
    )
