"""The text encoder in a single file: CLIP of Hugging Face (SD 1.x) or of open_clip (SD 2.x)."""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from foundation.errors import UserError
from interop.key_mapping import Shape, size

HUGGING_FACE = "cond_stage_model.transformer."  # Stable Diffusion 1.x
OPEN_CLIP = "cond_stage_model.model."  # Stable Diffusion 2.x
LAYER = re.compile(r"(?:encoder\.layers|transformer\.resblocks)\.(\d+)\.")
HEAD_WIDTH = 64  # in both families
START, END = 49406, 49407  # tokens of CLIP's vocabulary
PADS = {HUGGING_FACE: "<|endoftext|>", OPEN_CLIP: "!"}  # the latter has id 0
BESIDE_THE_TOWER = {  # what takes no part in token states
    HUGGING_FACE: ("text_model.embeddings.position_ids", "embeddings.position_ids"),
    OPEN_CLIP: ("text_projection", "logit_scale", "attn_mask"),
}
SIZES = {  # weights that show vocabulary, positions and the feed-forward width
    HUGGING_FACE: (
        "text_model.embeddings.token_embedding.weight",
        "text_model.embeddings.position_embedding.weight",
        "text_model.encoder.layers.0.mlp.fc1.weight",
    ),
    OPEN_CLIP: (
        "token_embedding.weight",
        "positional_embedding",
        "transformer.resblocks.0.mlp.c_fc.weight",
    ),
}
# ViT-H/14 has 24 layers, and Stable Diffusion 2 is trained on what the 23rd gives; some tools
# write a file without the last.
OPEN_CLIP_LAYERS, USED_LAYERS = 24, 23


def prefix_of(shapes: Mapping[str, Shape]) -> str | None:
    """Which family's text encoder is in the file, if any."""
    found = (p for p in (HUGGING_FACE, OPEN_CLIP) if any(name.startswith(p) for name in shapes))
    return next(found, None)


def tower_names(shapes: Mapping[str, Shape], prefix: str) -> dict[str, str]:
    """Name in the file -> name in the tower, of all that is part of it."""
    names = {name: name.removeprefix(prefix) for name in shapes if name.startswith(prefix)}
    names = {name: ours for name, ours in names.items() if ours not in BESIDE_THE_TOWER[prefix]}
    if prefix == OPEN_CLIP:
        return names
    return {name: "text_model." + ours.removeprefix("text_model.") for name, ours in names.items()}


def infer_config(shapes: Mapping[str, Shape], prefix: str) -> dict[str, Any]:
    """What config.json of a CLIPTextModel would say. shapes: by the names in the tower.

    Raises:
        ValueError: it is not to be told; the message is the reason.
    """
    hugging_face = prefix == HUGGING_FACE
    tokens, positions, mlp = SIZES[prefix]
    layers = stored_layers(shapes)
    width = size(shapes, tokens, 1)
    if width % HEAD_WIDTH:
        raise UserError(
            f"its text vectors have width {width}, which heads of {HEAD_WIDTH} do not divide, so "
            "that their number is not known"
        )
    if not hugging_face and layers not in (OPEN_CLIP_LAYERS, USED_LAYERS):
        raise UserError(
            f"its text encoder has {layers} layers. Of the {OPEN_CLIP_LAYERS} of Stable Diffusion "
            "2.x the last is not used; which are used of another number is not known"
        )
    return {
        "vocab_size": size(shapes, tokens, 0),
        "hidden_size": width,
        "intermediate_size": size(shapes, mlp, 0),
        "projection_dim": width,
        "num_hidden_layers": layers if hugging_face else USED_LAYERS,
        "num_attention_heads": width // HEAD_WIDTH,
        "max_position_embeddings": size(shapes, positions, 0),
        "hidden_act": "quick_gelu" if hugging_face else "gelu",
        "layer_norm_eps": 1e-5,
        "bos_token_id": START,
        "eos_token_id": END,
        "pad_token_id": END if hugging_face else 0,
        "tokenizer": {"pad_token": PADS[prefix]},
    }


def stored_layers(names: Mapping[str, Any]) -> int:
    return 1 + max((int(m[1]) for name in names if (m := LAYER.search(name))), default=-1)


def used_layers(weights: Mapping[str, Tensor], count: int) -> dict[str, Tensor]:
    """Without the layers from `count` on."""
    layers = {name: LAYER.search(name) for name in weights}
    return {
        name: value
        for name, value in weights.items()
        if layers[name] is None or int(layers[name][1]) < count
    }


def to_single_file(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """With the prefix of its family; one of open_clip with an unused layer more, as SD 2.x has."""
    if "token_embedding.weight" not in weights:
        return {HUGGING_FACE + name: value for name, value in weights.items()}
    last = stored_layers(weights) - 1
    unused = {
        name.replace(f".{last}.", f".{last + 1}.", 1): value.clone()
        for name, value in weights.items()
        if name.startswith(f"transformer.resblocks.{last}.")
    }
    return {OPEN_CLIP + name: value for name, value in (weights | unused).items()}
