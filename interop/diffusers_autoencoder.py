"""What a config.json and the weights of diffusers' AutoencoderKL mean."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from foundation.errors import UserError

# What a config.json of diffusers means when it leaves a field out. Here and nowhere else stands
# 0.18215, the latent scale of Stable Diffusion 1.x, whose files are older than the field. What is
# saved here always states its own, which is 1.0 (see `autoencoder.training.latent_statistics`).
DIFFUSERS_DEFAULTS = {
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
DOWN_BLOCK, UP_BLOCK = "DownEncoderBlock2D", "UpDecoderBlock2D"

# Names of the attention layers in the files of diffusers before 0.17.
OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def autoencoder_fields(content: dict[str, Any], source: Path) -> dict[str, Any]:
    """The fields of an AutoencoderConfig. source: the config.json, for messages."""
    given = {name: tuple(v) if isinstance(v, list) else v for name, v in content.items()}
    refuse_unsupported(source, given)
    config = {name: given.get(name, default) for name, default in DIFFUSERS_DEFAULTS.items()}
    if isinstance(config["sample_size"], tuple):  # a note only; diffusers also allows (h, w)
        config["sample_size"] = max(config["sample_size"])
    return config


def refuse_unsupported(path: Path, given: Mapping[str, Any]) -> None:
    """Settings that would give another network, or other latents, than ours."""
    levels = len(given.get("block_out_channels", DIFFUSERS_DEFAULTS["block_out_channels"]))
    supported = {
        "_class_name": ("AutoencoderKL",),
        "act_fn": ("silu", "swish"),
        "down_block_types": ((DOWN_BLOCK,) * levels,),
        "up_block_types": ((UP_BLOCK,) * levels,),
    }
    for name, choices in supported.items():
        if name in given and given[name] not in choices:
            wanted = " or ".join(map(repr, choices))
            raise UserError(f"{path}: {name} is {given[name]!r}; only {wanted} is supported.")
    for name, value in given.items():
        if name not in (*DIFFUSERS_DEFAULTS, *supported) and not name.startswith("_"):
            raise UserError(
                f"{path}: unknown setting {name} = {value!r}, which may make it another network "
                "than the one built here. If it means nothing, remove it from the file."
            )


def current_names(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights under the names that diffusers has used since 0.17."""
    return {current_name(key): value for key, value in weights.items()}


def current_name(key: str) -> str:
    head, dot, parameter = key.rpartition(".")
    block, _, layer = head.rpartition(".")
    if ".attentions." in key and layer in OLD_NAMES:
        return f"{block}.{OLD_NAMES[layer]}{dot}{parameter}"
    return key
