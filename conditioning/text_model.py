"""The text tower of CLIP: open_clip's causal transformer, configured as Hugging Face does it."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from foundation.errors import UserError
from foundation.json_reading import check_limits, from_json
from interop.safetensors_io import aligned_copy

ACTIVATIONS = ("quick_gelu", "gelu")
LAYER_NAMES = {  # inside a layer: Hugging Face -> open_clip
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}
OTHER_NAMES = {  # outside the layers
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm.weight": "ln_final.weight",
    "final_layer_norm.bias": "ln_final.bias",
}
# No tower has more; such numbers in a file would fill the memory before weights are compared.
LIMITS = {
    "vocab_size": (1, 10**7),
    "hidden_size": (1, 65536),
    "intermediate_size": (1, 10**6),
    "projection_dim": (0, 10**6),
    "num_hidden_layers": (1, 1000),
    "num_attention_heads": (1, 65536),
    "max_position_embeddings": (3, 8192),  # the causal mask has the square of it
    "layer_norm_eps": (0, 1),
}


@dataclass(frozen=True, kw_only=True)
class TextTowerConfig:
    """The architecture of a text tower.

    Field names are those of transformers' `CLIPTextConfig`, so that either side reads the other's
    file.
    """

    MODEL_CLASS: ClassVar[str] = "CLIPTextModel"  # of transformers
    MODEL_TYPE: ClassVar[str] = "clip_text_model"
    TOKENIZER_CLASS: ClassVar[str] = "CLIPTokenizer"
    LAYER_PREFIX: ClassVar[str] = "transformer.resblocks."  # of weights, under open_clip's names

    vocab_size: int = 49408
    hidden_size: int = 512
    intermediate_size: int = 2048
    projection_dim: int = 512  # of the whole CLIP; the tower has no projection
    num_hidden_layers: int = 12
    num_attention_heads: int = 8
    max_position_embeddings: int = 77
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    bos_token_id: int = 49406
    eos_token_id: int = 49407
    pad_token_id: int = 49407

    def __post_init__(self):
        check_limits(self, LIMITS)
        if self.hidden_act not in ACTIVATIONS:
            raise UserError(
                f"the text tower's hidden_act is {self.hidden_act!r}; CLIP text towers use "
                f"{' or '.join(ACTIVATIONS)}. Another activation would give other embeddings."
            )
        if self.hidden_size % self.num_attention_heads:
            raise UserError(
                f"a width of {self.hidden_size} does not split into {self.num_attention_heads} "
                "heads; choose a multiple."
            )

    @classmethod
    def from_dict(cls, content: Mapping[str, Any], source: object) -> "TextTowerConfig":
        """Make a config of the content of a config.json; null means the default.

        source: the file, for messages. Entries that are no fields are ignored.
        """
        given = {name: value for name, value in content.items() if value is not None}
        return from_json(cls, given, source)


def empty_tower(config: TextTowerConfig):  # -> open_clip's TextTransformer
    """Make a tower without memory for its weights, which have to be assigned.

    No random numbers are drawn.
    """
    from open_clip.transformer import (  # pyright: ignore[reportMissingTypeStubs]
        LayerNorm,  # not at the top: open_clip imports torchvision, which takes seconds
        QuickGELU,
        TextTransformer,
    )

    activations = {"quick_gelu": QuickGELU, "gelu": nn.GELU}
    with torch.device("meta"):
        return TextTransformer(
            context_length=config.max_position_embeddings,
            vocab_size=config.vocab_size,
            width=config.hidden_size,
            heads=config.num_attention_heads,
            layers=config.num_hidden_layers,
            # Half a unit more, because the tower rounds width times ratio down.
            mlp_ratio=(config.intermediate_size + 0.5) / config.hidden_size,
            output_dim=None,  # no projection: the context is the token states
            pool_type="none",
            act_layer=activations[config.hidden_act],
            norm_layer=cast(type[nn.Module], partial(LayerNorm, eps=config.layer_norm_eps)),
        )


def build_tower(
    config: TextTowerConfig, weights: Mapping[str, Tensor]
):  # -> open_clip's TextTransformer
    """Make a tower with the given weights, in float32.

    weights: under open_clip's names, exactly those of the tower.
    """
    tower = empty_tower(config)
    tower.load_state_dict({k: aligned_copy(v) for k, v in weights.items()}, assign=True)
    # The causal mask is computed, so no file has it; that of the empty tower has no numbers.
    tower.register_buffer("attn_mask", tower.build_causal_mask(), persistent=False)
    return tower


def to_hugging_face(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert weights to the names and shapes of transformers' `CLIPTextModel`.

    There, query, key and value are three tensors, and all names begin with "text_model.".
    """
    layer_names = {ours: theirs for theirs, ours in LAYER_NAMES.items()}
    other_names = {ours: theirs for theirs, ours in OTHER_NAMES.items()}
    renamed: dict[str, Tensor] = {}
    for key, value in weights.items():
        if key in other_names:
            renamed[f"text_model.{other_names[key]}"] = value
            continue
        index, name = key.removeprefix("transformer.resblocks.").split(".", 1)
        layer = f"text_model.encoder.layers.{index}"
        if name in ("attn.in_proj_weight", "attn.in_proj_bias"):
            kind = name.removeprefix("attn.in_proj_")
            for letter, third in zip("qkv", value.chunk(3), strict=True):
                renamed[f"{layer}.self_attn.{letter}_proj.{kind}"] = third.contiguous()
        else:
            module, kind = name.rsplit(".", 1)
            renamed[f"{layer}.{layer_names[module]}.{kind}"] = value
    return renamed


def from_hugging_face(weights: Mapping[str, Tensor], layers: int) -> dict[str, Tensor]:
    """Convert weights back to open_clip's names, the inverse of `to_hugging_face`.

    layers: how many layers the tower has.
    """
    renamed = {ours: weights[f"text_model.{theirs}"] for theirs, ours in OTHER_NAMES.items()}
    for index in range(layers):
        layer, block = f"text_model.encoder.layers.{index}", f"transformer.resblocks.{index}"
        for kind in ("weight", "bias"):
            thirds = [weights[f"{layer}.self_attn.{letter}_proj.{kind}"] for letter in "qkv"]
            renamed[f"{block}.attn.in_proj_{kind}"] = torch.cat(thirds)
            for theirs, ours in LAYER_NAMES.items():
                renamed[f"{block}.{ours}.{kind}"] = weights[f"{layer}.{theirs}.{kind}"]
    return renamed
