"""Rename state-dict keys: by a table of module names, or from older versions of a library."""

from collections.abc import Mapping
from typing import TypeVar

from torch import Tensor

from foundation.errors import UserError

Value = TypeVar("Value")  # a tensor, its shape, or its name elsewhere
Shape = tuple[int, ...]

# Names of the attention layers of autoencoders in diffusers before 0.17, and since then.
ATTENTION_LAYERS = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}

CLIP_TEXT_PREFIX = "text_model."
WITHOUT_CLIP_PREFIX = ("embeddings.", "encoder.layers.", "final_layer_norm.")
NOT_IN_CLIP_TEXT = (  # the rest of a CLIP, and indices that older versions of transformers stored
    "text_model.embeddings.position_ids",
    "text_projection.",
    "visual_projection.",
    "vision_model.",
    "logit_scale",
)


def rename_keys(weights: Mapping[str, Value], modules: Mapping[str, str]) -> dict[str, Value]:
    """Rename all keys by a table of module names; see `rename_key`."""
    return {rename_key(name, modules): value for name, value in weights.items()}


def rename_key(name: str, modules: Mapping[str, str]) -> str:
    """Replace the longest module name in the table that the key starts with.

    A key without such a module stays as it is, so that a later comparison with the network's keys
    reports it.
    """
    module, rest = name, ""
    while module not in modules:
        module, dot, last = module.rpartition(".")
        if not dot:
            return name
        rest = f".{last}{rest}"
    return modules[module] + rest


def invert(table: Mapping[str, str]) -> dict[str, str]:
    """Return the table of the opposite direction."""
    return {new: old for old, new in table.items()}


def axis_size(shapes: Mapping[str, Shape], name: str, axis: int) -> int:
    """Return the size of one axis of a weight that a config is inferred from.

    Raises:
        UserError: there is no such weight, or it has fewer axes.
    """
    if name not in shapes or len(shapes[name]) <= axis:
        raise UserError(f"{name} is missing or has a wrong number of axes")
    return shapes[name][axis]


def update_attention_keys(weights: Mapping[str, Value]) -> dict[str, Value]:
    """Rename the attention layers of an autoencoder as diffusers has named them since 0.17."""
    return {updated_attention_key(name): value for name, value in weights.items()}


def updated_attention_key(name: str) -> str:
    """Return the name that a weight of an autoencoder has in diffusers since 0.17."""
    module, dot, parameter = name.rpartition(".")
    block, _, layer = module.rpartition(".")
    if ".attentions." in name and layer in ATTENTION_LAYERS:
        return f"{block}.{ATTENTION_LAYERS[layer]}{dot}{parameter}"
    return name


def clip_text_weights(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Select the text tower of a Hugging Face CLIP, and start all its keys with "text_model.".

    transformers has stored a `CLIPTextModel` without that prefix since version 5.
    """
    return {
        CLIP_TEXT_PREFIX + name if name.startswith(WITHOUT_CLIP_PREFIX) else name: value
        for name, value in weights.items()
        if not name.startswith(NOT_IN_CLIP_TEXT)
    }
