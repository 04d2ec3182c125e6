"""LoRA in stage 2: a U-Net whose attention learns changes of low rank, and how they are used."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from conditioning.text_model import from_hugging_face, to_hugging_face
from foundation.errors import UserError
from interop.lora import LowRankUpdate, add_lora, find_lora, read_lora, write_lora
from interop.model_card import (
    as_mapping,
    bullet_list,
    program_name,
    render_card,
    training_section,
)
from interop.safetensors_io import read_header
from ldm import TextToImage
from ldm.unet.io import TEXT_CHUNKS, read_text_chunks
from training.ema import EMA

ADAPTER = "default"  # peft's name for the only one
TARGETS = ("to_q", "to_k", "to_v", "to_out.0")  # the projections of every attention
BYPASSED = ("proj_in", "proj_out")  # their weights are used without calling the module
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
    """Freezes the network, and gives every target a change to be trained, of which the end is 0.

    alpha: the change counts alpha / rank times. Draws from torch's own generator.
    """
    ends = [f".{target}" for target in targets]
    names = [name for name, module in network.named_modules() if hasattr(module, "weight")]
    for target, end in zip(targets, ends, strict=True):
        if end.endswith(BYPASSED):
            raise UserError(f"--lora-targets: {target} cannot learn a change here. Leave it out.")
        if not any(name.endswith(end) for name in names):
            raise UserError(
                f"--lora-targets: no module of this U-Net is called {target}. Those of attention "
                f"are {', '.join(TARGETS)}."
            )
    try:
        import peft
    except ModuleNotFoundError as error:
        raise UserError("--lora needs peft, which is not installed: pip install peft") from error
    network.requires_grad_(False)
    config = peft.LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(targets))
    peft.inject_adapter_in_model(config, network, ADAPTER)


def changed_modules(network: nn.Module) -> dict[str, nn.Module]:
    """Those that `add_adapter` gave a change, by the names they had before."""
    return {name: module for name, module in network.named_modules() if hasattr(module, "lora_A")}


def changes_of(network: nn.Module) -> dict[str, LowRankUpdate]:
    return {
        name: LowRankUpdate(
            module.lora_A[ADAPTER].weight.detach(),
            module.lora_B[ADAPTER].weight.detach(),
            module.scaling[ADAPTER] * module.r[ADAPTER],
        )
        for name, module in changed_modules(network).items()
    }


class AdapterState:
    """The trained part of a network, as a training state holds it: the rest is not its own."""

    def __init__(self, network: nn.Module):
        self.layers = nn.ModuleDict(
            {
                f"{name.replace('.', '/')}/{half}": getattr(module, half)[ADAPTER]
                for name, module in changed_modules(network).items()
                for half in ("lora_A", "lora_B")
            }
        )

    def state_dict(self) -> dict[str, Tensor]:
        return self.layers.state_dict()

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.layers.load_state_dict(state)


def adapter_parts(network: nn.Module, ema: EMA) -> dict[str, AdapterState]:
    """What takes the place of U-Net and average in the state of a LoRA run; else nothing.

    The average then shares the frozen weights with the network, instead of a copy of them.
    """
    if not changed_modules(network):
        return {}
    for mine, theirs in zip(ema.module.parameters(), network.parameters(), strict=True):
        if not theirs.requires_grad:
            mine.data = theirs.data
    return {"unet": AdapterState(network), "ema": AdapterState(ema.module)}


def save_lora(network: nn.Module, folder: Path, provenance: dict[str, Any]) -> None:
    """The trained changes, in the file that diffusers' `load_lora_weights` opens."""
    changes = changes_of(network)
    one = next(iter(changes.values()))
    facts = {
        "rank": len(one.down),
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


def apply_lora(pipeline: TextToImage, source: Path, scale: float = 1.0) -> None:
    """Adds a LoRA, of whoever trained it, to the weights of the U-Net and the text encoder.

    One that was trained here says how many contexts captions filled; so do prompts from here on.
    """
    parts = read_lora(source)
    if unet := parts.get("unet"):
        add_lora(pipeline.unet.state_dict(), unet, scale, source, "this model's U-Net")
    if text := parts.get("text_encoder"):
        encoder = pipeline.text_encoder
        if encoder is None:
            raise UserError(f"{source} changes a text encoder, and this model has none.")
        weights = to_hugging_face(encoder.tower.state_dict())
        weights = {name: weight.clone() for name, weight in weights.items()}
        add_lora(weights, text, scale, source, "this model's text encoder")
        layers = encoder.config.num_hidden_layers
        encoder.tower.load_state_dict(from_hugging_face(weights, layers))
    told = json.loads(read_header(find_lora(source))[1].get("latentsmith", "{}"))
    chunks = read_text_chunks(
        {TEXT_CHUNKS: pipeline.chunks, **as_mapping(told.get("config"))}, source
    )
    if chunks != pipeline.chunks:
        print(f"note: {source} was trained with --text-chunks {chunks}; so prompts are read, too.")
    pipeline.chunks = chunks
