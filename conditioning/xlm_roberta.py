"""The text tower of multilingual CLIPs: XLM-RoBERTa, an encoder that reads in both directions.

Conneau et al. 2020 (arXiv:1911.02116); the layers are those of BERT (Devlin et al. 2019,
arXiv:1810.04805). State-dict keys equal those of transformers' `XLMRobertaModel`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from foundation.errors import UserError
from foundation.json_reading import check_limits, from_json

States = Float[Tensor, "b tokens width"]
LIMITS = {
    "vocab_size": (5, 10**7),
    "hidden_size": (1, 65536),
    "intermediate_size": (1, 10**6),
    "num_hidden_layers": (1, 1000),
    "num_attention_heads": (1, 65536),
    "max_position_embeddings": (5, 8192),
    "type_vocab_size": (1, 1000),
    "pad_token_id": (0, 1000),
    "layer_norm_eps": (0, 1),
}
# Beginnings of keys where a tower is a part of something larger: a language model, a CLIP of
# open_clip, and one that was trained in parallel.
PREFIXES = ("module.", "text.", "transformer.", "roberta.")
NOT_OF_THE_TOWER = (  # output layers, projections and temperature, the image tower, stored indices
    *("pooler.", "lm_head.", "proj.", "logit_scale", "logit_bias", "visual."),
    *("embeddings.position_ids", "embeddings.token_type_ids"),
)


@dataclass(frozen=True, kw_only=True)
class XlmRobertaConfig:
    """The architecture; field names are those of transformers' `XLMRobertaConfig`."""

    MODEL_CLASS: ClassVar[str] = "XLMRobertaModel"  # of transformers
    MODEL_TYPE: ClassVar[str] = "xlm-roberta"
    TOKENIZER_CLASS: ClassVar[str] = "XLMRobertaTokenizer"
    LAYER_PREFIX: ClassVar[str] = "encoder.layer."

    vocab_size: int = 250002
    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    max_position_embeddings: int = 514
    type_vocab_size: int = 1
    hidden_act: Literal["gelu"] = "gelu"
    position_embedding_type: Literal["absolute"] = "absolute"
    layer_norm_eps: float = 1e-5
    bos_token_id: int = 0
    eos_token_id: int = 2
    pad_token_id: int = 1

    def __post_init__(self):
        check_limits(self, LIMITS)
        if self.hidden_size % self.num_attention_heads:
            raise UserError(
                f"a width of {self.hidden_size} does not split into {self.num_attention_heads} "
                "heads; choose a multiple."
            )
        if self.pad_token_id + 3 >= self.max_position_embeddings:
            raise UserError(
                f"max_position_embeddings is {self.max_position_embeddings}, which leaves no room "
                f"for text after the position {self.pad_token_id} of padding."
            )

    @classmethod
    def from_dict(cls, content: Mapping[str, Any], source: object) -> "XlmRobertaConfig":
        """Make a config of the content of a config.json; null means the default.

        source: the file, for messages. Entries that are no fields are ignored.
        """
        given = {name: value for name, value in content.items() if value is not None}
        return from_json(cls, given, source)

    @property
    def longest_text(self) -> int:
        """Tokens for which there are positions, which are counted from behind that of padding."""
        return self.max_position_embeddings - self.pad_token_id - 1


ARCHITECTURES = {  # as open_clip names them
    "xlm-roberta-base": XlmRobertaConfig(),
    "xlm-roberta-large": XlmRobertaConfig(
        hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16
    ),
}


class XlmRoberta(nn.Module):
    """Turns token ids into one vector per token; tokens do not attend to padding.

    Padding has states, too, which all are equal within a text: it attends to the text.
    """

    def __init__(self, config: XlmRobertaConfig):
        super().__init__()
        self.pad = config.pad_token_id
        self.embeddings = Embeddings(config)
        self.encoder = Encoder(config)

    def forward(self, ids: Int[Tensor, "b tokens"]) -> States:
        is_text = ids != self.pad
        states = self.embeddings(ids, is_text)
        for layer in self.encoder.layer:
            states = layer(states, is_text)
        return states


class Embeddings(nn.Module):
    """Adds the vectors of token, position and segment, of which there is one."""

    def __init__(self, config: XlmRobertaConfig):
        super().__init__()
        width = config.hidden_size
        self.pad = config.pad_token_id
        self.word_embeddings = nn.Embedding(config.vocab_size, width)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, width)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, width)
        self.LayerNorm = nn.LayerNorm(width, eps=config.layer_norm_eps)

    def forward(self, ids: Int[Tensor, "b tokens"], is_text: Bool[Tensor, "b tokens"]) -> States:
        # Positions are counted from behind that of padding, in which all padding lies.
        positions = is_text.long().cumsum(dim=1) * is_text + self.pad
        states = self.word_embeddings(ids) + self.token_type_embeddings.weight[0]
        return self.LayerNorm(states + self.position_embeddings(positions))


class Encoder(nn.Module):
    def __init__(self, config: XlmRobertaConfig):
        super().__init__()
        self.layer = nn.ModuleList([Layer(config) for _ in range(config.num_hidden_layers)])


class Layer(nn.Module):
    """Attention and an MLP, each followed by the norm of its sum with what went in."""

    def __init__(self, config: XlmRobertaConfig):
        super().__init__()
        self.attention = Attention(config)
        self.intermediate = Dense(config.hidden_size, config.intermediate_size)
        self.output = AddAndNorm(config.intermediate_size, config)

    def forward(self, states: States, is_text: Bool[Tensor, "b tokens"]) -> States:
        states = self.attention(states, is_text)
        return self.output(F.gelu(self.intermediate.dense(states)), states)


class Attention(nn.Module):
    def __init__(self, config: XlmRobertaConfig):
        super().__init__()
        self.self = QueryKeyValue(config.hidden_size)
        self.output = AddAndNorm(config.hidden_size, config)
        self.heads = config.num_attention_heads

    def forward(self, states: States, is_text: Bool[Tensor, "b tokens"]) -> States:
        linears = (self.self.query, self.self.key, self.self.value)
        query, key, value = (
            rearrange(linear(states), "b n (h d) -> b h n d", h=self.heads) for linear in linears
        )
        mask = is_text[:, None, None, :]
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return self.output(rearrange(mixed, "b h n d -> b n (h d)"), states)


class QueryKeyValue(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))


class Dense(nn.Module):
    def __init__(self, width_in: int, width_out: int):
        super().__init__()
        self.dense = nn.Linear(width_in, width_out)


class AddAndNorm(Dense):
    """A linear layer, and the norm of the sum of its output with other states."""

    def __init__(self, width_in: int, config: XlmRobertaConfig):
        super().__init__(width_in, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, inner: Float[Tensor, "b tokens inner"], states: States) -> States:
        return self.LayerNorm(self.dense(inner) + states)


def empty_xlm_roberta(config: XlmRobertaConfig) -> XlmRoberta:
    """Make a tower without memory for its weights, which have to be assigned."""
    with torch.device("meta"):
        return XlmRoberta(config)


def bare_key(key: str) -> str:
    """Return the key of a tower's weight without what says that the tower is part of a model."""
    for prefix in PREFIXES:
        key = key.removeprefix(prefix)
    return key


def is_of_tower(key: str) -> bool:
    """Return whether a weight may be one of a tower's; the caller compares names and shapes."""
    return not bare_key(key).startswith(NOT_OF_THE_TOWER)


def xlm_roberta_weights(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Select the weights of the tower in a language model or a CLIP, under the tower's names."""
    return {bare_key(key): value for key, value in weights.items() if is_of_tower(key)}
