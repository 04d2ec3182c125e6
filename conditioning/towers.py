"""The two kinds of text towers: CLIP's, and XLM-RoBERTa of multilingual CLIPs."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from conditioning import text_model
from conditioning.text_model import TextTowerConfig, from_hugging_face, to_hugging_face
from conditioning.xlm_roberta import (
    XlmRoberta,
    XlmRobertaConfig,
    empty_xlm_roberta,
    xlm_roberta_weights,
)
from interop.key_mapping import clip_text_weights
from interop.safetensors_io import aligned_copy

TowerConfig = TextTowerConfig | XlmRobertaConfig


def tower_config(content: Mapping[str, Any], source: object) -> TowerConfig:
    """Return the config in the content of a config.json of transformers.

    source: the file, for messages.
    """
    kind = XlmRobertaConfig if content.get("model_type") == "xlm-roberta" else TextTowerConfig
    return kind.from_dict(content, source)


def build_tower(config: TowerConfig, weights: Mapping[str, Tensor]):
    """Make a tower with the given weights, in float32.

    weights: under the tower's names, exactly those of the tower.
    """
    if isinstance(config, TextTowerConfig):
        return text_model.build_tower(config, weights)
    tower = empty_xlm_roberta(config)
    tower.load_state_dict({k: aligned_copy(v) for k, v in weights.items()}, assign=True)
    return tower


def named_as_transformers(tower: nn.Module) -> dict[str, Tensor]:
    """Return the weights of a tower under the names that they have in transformers."""
    weights = tower.state_dict()
    return weights if isinstance(tower, XlmRoberta) else to_hugging_face(weights)


def expected_by_transformers(config: TowerConfig) -> dict[str, Tensor]:
    """Return what a tower needs, under transformers' names; the tensors have no memory."""
    if isinstance(config, XlmRobertaConfig):
        return empty_xlm_roberta(config).state_dict()
    return to_hugging_face(text_model.empty_tower(config).state_dict())


def select_weights(config: TowerConfig, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of the tower among those of a folder, under transformers' names."""
    if isinstance(config, XlmRobertaConfig):
        return xlm_roberta_weights(weights)
    return clip_text_weights(weights)


def named_as_tower(config: TowerConfig, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return weights of transformers under the names of the tower."""
    if isinstance(config, XlmRobertaConfig):
        return dict(weights)
    return from_hugging_face(weights, config.num_hidden_layers)
