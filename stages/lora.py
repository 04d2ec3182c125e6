"""LoRA in stage 2: low-rank changes of a U-Net's attention are trained, saved, and applied.

Hu et al. 2022, "LoRA: Low-Rank Adaptation of Large Language Models" (arXiv:2106.09685).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from conditioning.text_model import TextTowerConfig, from_hugging_face, to_hugging_face
from foundation.errors import UserError
from foundation.hashing import file_sha256
from interop.lora import LowRankUpdate, add_lora, find_lora, read_lora, write_lora
from interop.model_card import (
    as_mapping,
    bullet_list,
    program_name,
    render_card,
    training_section,
)
from interop.provenance import parse_provenance
from interop.safetensors_io import read_header
from ldm import TextToImage
from ldm.unet.io import TEXT_CHUNKS, read_text_chunks
from stages.flags.diffusion import LORA_TARGETS
from training.weights.ema import EMA

LORA = "lora"  # name in records
ADAPTER = "default"  # peft's name for the only adapter
NEVER_CALLED = ("proj_in", "proj_out")  # modules whose weights are used without calling them
USE = """## Use

```
python sample.py PROMPT --model BASE --lora {folder}
```

```
pipeline = StableDiffusionPipeline.from_pretrained(BASE)  # of diffusers
pipeline.load_lora_weights("{folder}")
```

BASE is the model that it was trained on, or another of the same architecture."""


def add_adapter(network: nn.Module, rank: int, alpha: float, targets: Sequence[str]) -> None:
    """Freeze a network, and add trainable low-rank changes to its modules, which start at 0.

    Random numbers come from PyTorch's global generator.

    Args:
        alpha: the changes are scaled by alpha / rank.
        targets: ends of the names of the modules.

    Raises:
        UserError: a target is not there or cannot be changed, or peft is not installed.
    """
    names = [name for name, module in network.named_modules() if hasattr(module, "weight")]
    for target in targets:
        if f".{target}".endswith(NEVER_CALLED):
            raise UserError(f"--lora-targets: {target} cannot learn a change here. Leave it out.")
        if not any(name.endswith(f".{target}") for name in names):
            raise UserError(
                f"--lora-targets: no module of this U-Net is called {target}. Those of attention "
                f"are {', '.join(LORA_TARGETS)}."
            )
    try:
        import peft
    except ModuleNotFoundError as error:
        raise UserError("--lora needs peft, which is not installed: pip install peft") from error
    network.requires_grad_(False)
    # peft takes fractions, too, though it says int.
    config = peft.LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(targets))  # pyright: ignore[reportArgumentType]
    peft.inject_adapter_in_model(config, network, ADAPTER)


def adapted_modules(network: nn.Module) -> dict[str, Any]:
    """Return the modules that `add_adapter` changed (peft's LoraLayer), by their former names."""
    return {name: module for name, module in network.named_modules() if hasattr(module, "lora_A")}


def low_rank_changes(network: nn.Module) -> dict[str, LowRankUpdate]:
    """Return the trained changes by module."""
    return {
        name: LowRankUpdate(
            module.lora_A[ADAPTER].weight.detach(),
            module.lora_B[ADAPTER].weight.detach(),
            module.scaling[ADAPTER] * module.r[ADAPTER],
        )
        for name, module in adapted_modules(network).items()
    }


class AdapterState:
    """The state of an adapter alone, without the frozen weights of its network."""

    def __init__(self, network: nn.Module):
        self.layers = nn.ModuleDict(
            {
                f"{name.replace('.', '/')}/{half}": getattr(module, half)[ADAPTER]
                for name, module in adapted_modules(network).items()
                for half in ("lora_A", "lora_B")
            }
        )

    def state_dict(self) -> dict[str, Tensor]:
        return self.layers.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor], /) -> None:
        self.layers.load_state_dict(state)


def adapter_states(network: nn.Module, ema: EMA) -> dict[str, AdapterState]:
    """Return what replaces U-Net and EMA in the saved state of a LoRA training.

    Empty for a network without an adapter. Otherwise the EMA shares the frozen weights with the
    network from here on, instead of keeping a copy.
    """
    if not adapted_modules(network):
        return {}
    for average, weight in zip(ema.module.parameters(), network.parameters(), strict=True):
        if not weight.requires_grad:
            average.data = weight.data
    return {"unet": AdapterState(network), "ema": AdapterState(ema.module)}


def save_lora(network: nn.Module, folder: Path, provenance: Mapping[str, Any]) -> None:
    """Write the trained changes as diffusers' `load_lora_weights` reads them, with a model card."""
    changes = low_rank_changes(network)
    rank = len(next(iter(changes.values())).down)
    facts = {
        "rank": rank,
        "matrices changed": len(changes),
        "trained on": f"a U-Net of sha256 `{provenance['config'].get('init_sha256')}`",
    }
    card = render_card(
        "LoRA for a latent diffusion model",
        [
            f"Changes of low rank to the attention of a U-Net, written by {program_name()}.\n\n"
            f"{bullet_list(facts)}",
            USE.format(folder="."),
            training_section(provenance),
        ],
        library="diffusers",
        tags=["lora", "latent-diffusion"],
    )
    write_lora(folder, {"unet": changes}, provenance, card)


def apply_lora(pipeline: TextToImage, source: Path, scale: float = 1.0) -> dict[str, str]:
    """Add a LoRA to the weights of the U-Net and the text encoder, whatever program trained it.

    If it records how many contexts captions filled when it was trained, prompts fill as many from
    here on.

    scale: multiplies the changes.

    Returns:
        The sha256 of its file, by the name that records of pictures have for it.

    Raises:
        UserError: the file is no LoRA, or not one for this model; then nothing is changed.
    """
    changes = read_lora(source)
    file = find_lora(source)
    provenance = parse_provenance(read_header(file)[1].get("latentsmith", "{}"), file)
    trained_with = as_mapping(provenance.get("config"))
    if trained_with.get(TEXT_CHUNKS) is None:  # not recorded, or the U-Net reads no texts
        trained_with = {TEXT_CHUNKS: pipeline.chunks}
    chunks = read_text_chunks(trained_with, source)
    tower: dict[str, Tensor] | None = None
    encoder = pipeline.text_encoder
    if text := changes.get("text_encoder"):
        if encoder is None:
            raise UserError(f"{source} changes a text encoder, and this model has none.")
        if not isinstance(encoder.config, TextTowerConfig):
            raise UserError(
                f"{source} changes the text tower of a CLIP, and this model has another kind."
            )
        weights = to_hugging_face(encoder.tower.state_dict())
        weights = {name: weight.clone() for name, weight in weights.items()}
        add_lora(weights, text, scale, source, "this model's text encoder")
        tower = from_hugging_face(weights, encoder.config.num_hidden_layers)
    if unet := changes.get("unet"):
        add_lora(pipeline.unet.state_dict(), unet, scale, source, "this model's U-Net")
    if tower is not None and encoder is not None:
        encoder.tower.load_state_dict(tower)
    if chunks != pipeline.chunks:
        print(f"note: {source} was trained with --text-chunks {chunks}; prompts are read so, too.")
    pipeline.chunks = chunks
    return {LORA: file_sha256(file)}
