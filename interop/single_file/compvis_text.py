"""The text encoder in a single file: a CLIP of Hugging Face (SD 1.x) or of open_clip (SD 2.x)."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from foundation.errors import UserError
from interop.key_mapping import Shape, axis_size

# The two families, by the prefix of their keys.
HUGGING_FACE = "cond_stage_model.transformer."  # Stable Diffusion 1.x
OPEN_CLIP = "cond_stage_model.model."  # Stable Diffusion 2.x
LAYER = re.compile(r"(?:encoder\.layers|transformer\.resblocks)\.(\d+)\.")
HEAD_WIDTH = 64  # in both families
START_ID, END_ID = 49406, 49407  # of CLIP's vocabulary
PAD_TOKENS = {HUGGING_FACE: "<|endoftext|>", OPEN_CLIP: "!"}
PAD_IDS = {HUGGING_FACE: END_ID, OPEN_CLIP: 0}
UNUSED = {  # tensors that do not affect the context
    HUGGING_FACE: ("text_model.embeddings.position_ids", "embeddings.position_ids"),
    OPEN_CLIP: ("text_projection", "logit_scale", "attn_mask"),
}
SIZES = {  # weights that show the sizes of vocabulary, positions and feed-forward layers
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
# Stable Diffusion 2 reads the output of layer 23 of ViT-H/14, which has 24. Some tools leave the
# last one out of the file.
OPEN_CLIP_LAYERS, USED_LAYERS = 24, 23


def find_prefix(names: Iterable[str]) -> str | None:
    """Return the prefix of the text encoder's keys, which also tells its family, or None."""
    names = list(names)
    prefixes = (p for p in (HUGGING_FACE, OPEN_CLIP) if any(name.startswith(p) for name in names))
    return next(prefixes, None)


def tower_keys(names: Iterable[str], prefix: str) -> dict[str, str]:
    """Return name in the file -> key in the text tower, for all tensors of the tower."""
    keys = {name: name.removeprefix(prefix) for name in names if name.startswith(prefix)}
    keys = {name: key for name, key in keys.items() if key not in UNUSED[prefix]}
    if prefix == OPEN_CLIP:
        return keys
    return {name: "text_model." + key.removeprefix("text_model.") for name, key in keys.items()}


def infer_config(shapes: Mapping[str, Shape], prefix: str) -> dict[str, Any]:
    """Infer the content of a CLIPTextModel's config.json.

    shapes: by keys in the text tower.

    Raises:
        UserError: the shapes do not determine it; the message is the reason, without a file name.
    """
    tokens, positions, feed_forward = SIZES[prefix]
    layers = count_layers(shapes)
    width = axis_size(shapes, tokens, 1)
    if width % HEAD_WIDTH:
        raise UserError(
            f"its text embeddings have width {width}, which is not a multiple of {HEAD_WIDTH}, the "
            "width of a head, so the number of heads is unknown"
        )
    if prefix == OPEN_CLIP and layers not in (OPEN_CLIP_LAYERS, USED_LAYERS):
        raise UserError(
            f"its text encoder has {layers} layers. Of the {OPEN_CLIP_LAYERS} of Stable Diffusion "
            "2.x the last is unused; of another number it is unknown which are used"
        )
    return {
        "vocab_size": axis_size(shapes, tokens, 0),
        "hidden_size": width,
        "intermediate_size": axis_size(shapes, feed_forward, 0),
        "projection_dim": width,
        "num_hidden_layers": USED_LAYERS if prefix == OPEN_CLIP else layers,
        "num_attention_heads": width // HEAD_WIDTH,
        "max_position_embeddings": axis_size(shapes, positions, 0),
        "hidden_act": "gelu" if prefix == OPEN_CLIP else "quick_gelu",
        "layer_norm_eps": 1e-5,
        "bos_token_id": START_ID,
        "eos_token_id": END_ID,
        "pad_token_id": PAD_IDS[prefix],
        "tokenizer": {"pad_token": PAD_TOKENS[prefix]},
    }


def count_layers(names: Iterable[str]) -> int:
    """Return the number of transformer layers that are stored."""
    return 1 + max((int(m[1]) for name in names if (m := LAYER.search(name))), default=-1)


def first_layers(weights: Mapping[str, Tensor], count: int) -> dict[str, Tensor]:
    """Leave out the transformer layers from number `count` on."""
    return {
        name: value
        for name, value in weights.items()
        if not (layer := LAYER.search(name)) or int(layer[1]) < count
    }


def to_single_file(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Add the prefix of the family; for open_clip also the unused last layer that SD 2.x has."""
    if "token_embedding.weight" not in weights:
        return {HUGGING_FACE + name: value for name, value in weights.items()}
    last = count_layers(weights) - 1
    unused = {
        name.replace(f".{last}.", f".{last + 1}.", 1): value.clone()
        for name, value in weights.items()
        if name.startswith(f"transformer.resblocks.{last}.")
    }
    return {OPEN_CLIP + name: value for name, value in {**weights, **unused}.items()}
