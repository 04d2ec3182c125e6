"""Text to context: the token states of a frozen CLIP text tower."""

import hashlib
from copy import deepcopy
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from open_clip.transformer import TextTransformer
from torch import Tensor, nn

from conditioning.io import (
    find_text_encoder,
    read_single_file,
    read_text_encoder,
    read_tokenizer,
    write_text_encoder,
)
from conditioning.model_card import card
from conditioning.open_clip_weights import read_pretrained
from conditioning.text_model import TextTowerConfig, build_tower, to_hugging_face
from conditioning.tokenizer import Tokenizer
from conditioning.tokenizer_io import save_tokenizer
from foundation.errors import MissingFileError, UserError
from foundation.files import atomic_folder, read_json

Layer = Literal["last", "penultimate"]

GOLDEN_SENTENCE = "a red apple on a wooden table"


class TextEncoder(nn.Module):
    """One vector per token, padding included, as a U-Net attends to it; not CLIP's pooled vector.

    `encoder(texts)` gives the states after the chosen layer, float32 and without gradient;
    `encoder([""])` is the null context of classifier-free guidance. The tower is causal and has no
    padding mask, as in Stable Diffusion. Frozen for good: `train()` does not wake it.

    layer, final_norm: "last" with the norm is Stable Diffusion 1, "penultimate" with it is
        Stable Diffusion 2, "penultimate" without it is Stable Diffusion XL.
    """

    def __init__(
        self,
        config: TextTowerConfig,
        weights: dict[str, Tensor],
        tokenizer: Tokenizer,
        layer: Layer = "last",
        final_norm: bool = True,
    ):
        super().__init__()
        if layer not in ("last", "penultimate"):
            raise UserError(f"layer is {layer!r}; choose 'last' or 'penultimate'.")
        if layer == "penultimate" and config.num_hidden_layers < 2:
            raise UserError("a text tower of one layer has no penultimate one; use layer='last'.")
        if layer == "penultimate" and final_norm:
            # As Stable Diffusion 2 stores it: one layer less, and the last one is the right one.
            config, weights = without_last_layer(config, weights)
            layer = "last"
        self.config = config
        self.tokenizer = tokenizer
        self.layer = layer
        self.final_norm = final_norm
        self.tower: TextTransformer = build_tower(config, weights)
        self.requires_grad_(False)
        self.eval()

    @classmethod
    def load(
        cls,
        source: str | Path,
        device: str | torch.device = "cpu",
        layer: Layer | None = None,
        final_norm: bool | None = None,
    ) -> "TextEncoder":
        """Opens a text encoder, whoever trained it.

        Args:
            source: a run folder of train_clip.py, a pipeline folder, a `CLIPTextModel` folder, the
                single file of a Stable Diffusion model, or NAME:PRETRAINED of open_clip, where
                PRETRAINED is a tag or a weights file, for example ViT-L-14-quickgelu:openai.
            layer, final_norm: as the folder says, or else the last layer with the norm. Counted
                from the stored tower, which in Stable Diffusion 2 already ends one layer early.
        """
        recorded = {}
        if Path(source).is_dir():
            folder = find_text_encoder(Path(source))
            config, weights = read_text_encoder(folder)
            tokenizer = read_tokenizer(folder, config)
            recorded = read_json(folder / "latentsmith.json", default={})
        elif Path(source).is_file():
            config, weights, tokenizer, recorded = read_single_file(Path(source))
        elif ":" in str(source):
            config, weights, tokenizer = read_pretrained(str(source))
        else:
            raise MissingFileError(
                f"there is no text encoder folder {str(source)!r}. Needed is a run folder of "
                "train_clip.py, a pipeline folder, a CLIPTextModel folder, the single file of a "
                "whole model, or NAME:PRETRAINED of open_clip such as ViT-L-14-quickgelu:openai."
            )
        if layer is None:
            layer = recorded.get("layer", "last")
        if final_norm is None:
            final_norm = recorded.get("final_norm", True)
        return cls(config, weights, tokenizer, layer, final_norm).to(device)

    @property
    def width(self) -> int:
        return self.config.hidden_size

    @property
    def tokens(self) -> int:
        """Context length: every text becomes this many vectors."""
        return self.tokenizer.context_length

    def tokenize(self, texts: list[str]) -> Int[Tensor, "b tokens"]:
        """Token ids, cut and padded to `tokens`."""
        if isinstance(texts, str):
            raise UserError(f"texts must be a list of strings, got one string: [{texts!r}]?")
        return self.tokenizer(texts)

    def count_tokens(self, text: str) -> int:
        """Tokens the text needs, start and end token included; beyond `tokens` it is cut."""
        return self.tokenizer.count(text)

    def forward(self, texts: list[str]) -> Float[Tensor, "b tokens width"]:
        return self.encode(self.tokenize(texts))

    @torch.no_grad()
    def encode(self, ids: Int[Tensor, "b tokens"]) -> Float[Tensor, "b tokens width"]:
        """The same for token ids, start, end and padding included."""
        ids = ids.to(self.tower.token_embedding.weight.device)
        if len(ids) == 0:
            return ids.new_zeros(0, self.tokens, self.width, dtype=torch.float32)
        # The embedding is a target of comparison by hash and value, so no autocast around it.
        with torch.autocast(ids.device.type, enabled=False):
            return self.token_states(ids).float()

    def token_states(self, ids: Int[Tensor, "b tokens"]) -> Float[Tensor, "b tokens width"]:
        """The states of the chosen layer. open_clip's method deals with either batch order."""
        states = self.tower.forward_intermediates(
            ids,
            indices=[-1 if self.layer == "last" else -2],
            stop_early=True,
            normalize_intermediates=self.final_norm,
            intermediates_only=True,
            output_fmt="NLC",
        )
        return states["text_intermediates"][0]

    def train(self, mode: bool = True) -> "TextEncoder":
        """Stays in evaluation mode, whatever the model around it does."""
        return super().train(False)

    @property
    def sha256(self) -> str:
        """Of the weights as numbers (float32, by Hugging Face's names), so of no file's layout."""
        digest = hashlib.sha256()
        for key, value in sorted(to_hugging_face(self.tower.state_dict()).items()):
            digest.update(f"{key} {tuple(value.shape)}".encode())
            digest.update(value.float().contiguous().cpu().numpy().tobytes())
        return digest.hexdigest()

    def golden(self) -> Float[Tensor, "tokens width"]:
        """The context of one fixed sentence, to notice drift of tokenizer, layer or activation.

        In float32, whatever the precision of the weights."""
        rounded = self.tower.ln_final.weight.dtype != torch.float32
        exact = deepcopy(self).float() if rounded else self
        return exact([GOLDEN_SENTENCE])[0].cpu()

    def save(self, folder: str | Path, provenance: dict[str, Any] | None = None) -> None:
        """Writes text_encoder/ and tokenizer/ of a diffusers pipeline folder.

        transformers' `last_hidden_state` then is this encoder's output. Without the final norm it
        is `hidden_states[-2]`, which only latentsmith.json says: Hugging Face's layout has no
        place for it.

        provenance: facts worth keeping (JSON), such as the data and the settings.
        """
        facts: dict[str, Any] = {"layer": self.layer, "final_norm": self.final_norm}
        facts |= {"sha256": self.sha256, "provenance": provenance or {}}
        readme = card(asdict(self.config), facts, tokens=self.tokens, pad=self.tokenizer.pad)
        weights = self.tower.state_dict()
        with atomic_folder(Path(folder), keep_others=True) as partial:
            write_text_encoder(partial / "text_encoder", self.config, weights, facts, readme)
            save_tokenizer(self.tokenizer, partial / "tokenizer")


def without_last_layer(
    config: TextTowerConfig, weights: dict[str, Tensor]
) -> tuple[TextTowerConfig, dict[str, Tensor]]:
    layers = config.num_hidden_layers - 1
    dropped = f"transformer.resblocks.{layers}."
    kept = {key: value for key, value in weights.items() if not key.startswith(dropped)}
    return replace(config, num_hidden_layers=layers), kept
