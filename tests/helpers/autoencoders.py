"""Autoencoders for tests: the counterpart in diffusers, and weights that hide no mistake."""

from dataclasses import asdict
from typing import Any

import torch

from autoencoder import AutoencoderConfig
from autoencoder.io import diffusers_config


def make_diffusers(config: AutoencoderConfig) -> Any:
    """Make diffusers' AutoencoderKL of the same architecture, with random weights."""
    from diffusers import AutoencoderKL

    fields = diffusers_config(asdict(config))
    return AutoencoderKL(**{k: v for k, v in fields.items() if not k.startswith("_")}).eval()


def randomize(module: torch.nn.Module) -> None:
    """Add noise to all weights.

    Norms and biases start as ones and zeros, with which a swapped pair would go unnoticed.
    """
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
