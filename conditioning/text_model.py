"""The text tower: open_clip's causal transformer, described in Hugging Face's words."""

from dataclasses import asdict, dataclass
from functools import partial

import torch
from open_clip.transformer import LayerNorm, QuickGELU, TextTransformer
from torch import Tensor, nn

from foundation.errors import UserError
from interop.safetensors_io import aligned_copy

ACTIVATIONS = {"quick_gelu": QuickGELU, "gelu": nn.GELU}
PARTS_OF_A_LAYER = {  # Hugging Face -> open_clip
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}
OUTSIDE_LAYERS = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm.weight": "ln_final.weight",
    "final_layer_norm.bias": "ln_final.bias",
}


@dataclass(frozen=True, kw_only=True)
class TextTowerConfig:
    """Field names are those of `CLIPTextConfig`, so that either side reads the other's file."""

    vocab_size: int = 49408
    hidden_size: int = 512
    intermediate_size: int = 2048
    projection_dim: int = 512  # of the whole CLIP; the tower itself has no projection
    num_hidden_layers: int = 12
    num_attention_heads: int = 8
    max_position_embeddings: int = 77
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    bos_token_id: int = 49406
    eos_token_id: int = 49407
    pad_token_id: int = 49407

    def __post_init__(self):
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
    def from_dict(cls, content: dict) -> "TextTowerConfig":
        """Takes the fields it knows; foreign files hold many that do not change the tower."""
        known = {key: content[key] for key in asdict(cls()) if content.get(key) is not None}
        return cls(**known)


def empty_tower(config: TextTowerConfig) -> TextTransformer:
    """The tower without memory for its weights, which are to be assigned; draws no numbers."""
    with torch.device("meta"):
        return TextTransformer(
            context_length=config.max_position_embeddings,
            vocab_size=config.vocab_size,
            width=config.hidden_size,
            heads=config.num_attention_heads,
            layers=config.num_hidden_layers,
            # Half a unit more, because the tower rounds the product down.
            mlp_ratio=(config.intermediate_size + 0.5) / config.hidden_size,
            output_dim=None,  # no projection: the context is the token states
            pool_type="none",
            act_layer=ACTIVATIONS[config.hidden_act],
            norm_layer=partial(LayerNorm, eps=config.layer_norm_eps),
        )


def build_tower(config: TextTowerConfig, weights: dict[str, Tensor]) -> TextTransformer:
    """weights: open_clip's names, exactly those of the tower."""
    tower = empty_tower(config)
    tower.load_state_dict({k: aligned_copy(v) for k, v in weights.items()}, assign=True)
    # The causal mask is derived, so it is in no file; the empty tower's holds no numbers.
    tower.attn_mask = tower.build_causal_mask()
    return tower


def to_hugging_face(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names and shapes of `CLIPTextModel`: query, key and value apart, prefix "text_model."."""
    layer_parts = {ours: theirs for theirs, ours in PARTS_OF_A_LAYER.items()}
    outside = {ours: theirs for theirs, ours in OUTSIDE_LAYERS.items()}
    renamed = {}
    for key, value in weights.items():
        if key in outside:
            renamed[f"text_model.{outside[key]}"] = value
            continue
        index, part = key.removeprefix("transformer.resblocks.").split(".", 1)
        layer = f"text_model.encoder.layers.{index}"
        if part in ("attn.in_proj_weight", "attn.in_proj_bias"):
            kind = part.removeprefix("attn.in_proj_")
            for name, third in zip("qkv", value.chunk(3), strict=True):
                renamed[f"{layer}.self_attn.{name}_proj.{kind}"] = third.contiguous()
        else:
            module, kind = part.rsplit(".", 1)
            renamed[f"{layer}.{layer_parts[module]}.{kind}"] = value
    return renamed


def from_hugging_face(weights: dict[str, Tensor], layers: int) -> dict[str, Tensor]:
    """The inverse of `to_hugging_face`."""
    renamed = {ours: weights[f"text_model.{theirs}"] for theirs, ours in OUTSIDE_LAYERS.items()}
    for index in range(layers):
        layer, block = f"text_model.encoder.layers.{index}", f"transformer.resblocks.{index}"
        for kind in ("weight", "bias"):
            thirds = [weights[f"{layer}.self_attn.{name}_proj.{kind}"] for name in "qkv"]
            renamed[f"{block}.attn.in_proj_{kind}"] = torch.cat(thirds)
            for theirs, ours in PARTS_OF_A_LAYER.items():
                renamed[f"{block}.{ours}.{kind}"] = weights[f"{layer}.{theirs}.{kind}"]
    return renamed
