"""Text encoders with random weights, for tests."""

import torch
from transformers import CLIPTextConfig, CLIPTextModel

from conditioning import TextEncoder
from conditioning.text_model import TextTowerConfig, empty_tower
from conditioning.tokenizer import clip_tokenizer


def random_clip_text_model(**fields) -> CLIPTextModel:
    """Make a small text model of transformers; fields change its config."""
    torch.manual_seed(0)
    settings = {
        "hidden_size": 48,
        "intermediate_size": 100,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": 20,
        "initializer_factor": 5.0,  # far from linear, so that activations and norms matter
        "eos_token_id": 49407,
    }
    model = CLIPTextModel(CLIPTextConfig(**{**settings, **fields})).eval()
    with torch.no_grad():  # norms that do nothing would hide a missing one
        for name, weight in model.named_parameters():
            if "norm" in name or name.endswith("bias"):
                weight.add_(0.2 * torch.randn_like(weight))
    return model


def small_encoder(**fields) -> TextEncoder:
    """Make a small text encoder of ours without any file; fields change its config."""
    config = TextTowerConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, **fields
    )
    generator = torch.Generator().manual_seed(0)
    weights = {
        key: 0.3 * torch.randn(value.shape, generator=generator)
        for key, value in empty_tower(config).state_dict().items()
    }
    return TextEncoder(config, weights, clip_tokenizer(config.max_position_embeddings))
