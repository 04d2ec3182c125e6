"""Text to context: the token states of a frozen text tower, of CLIP or of a multilingual CLIP."""

import hashlib
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from conditioning.io import (
    PROVENANCE,
    find_text_encoder,
    read_single_file,
    read_text_encoder,
    read_tokenizer,
    write_text_encoder,
    write_tokenizer,
)
from conditioning.model_card import model_card_text
from conditioning.open_clip_weights import read_pretrained
from conditioning.token_ids import TextTokenizer
from conditioning.towers import TowerConfig, build_tower, named_as_transformers
from conditioning.xlm_roberta import XlmRoberta, XlmRobertaConfig
from foundation.errors import MissingFileError, UserError, shown
from foundation.files import atomic_folder
from foundation.json_reading import check_type
from foundation.run_kind import hub_hint
from interop.provenance import read_facts, without_paths

Layer = Literal["last", "penultimate"]

GOLDEN_SENTENCE = "a red apple on a wooden table"


class TextEncoder(nn.Module):
    """A frozen text tower that turns texts into one vector per token, padding included.

    These are the vectors to which a U-Net attends, not CLIP's pooled vector. `encoder(texts)`
    returns the states after the chosen layer, in float32 and without gradient; `encoder([""])` is
    the null context of classifier-free guidance. CLIP's tower is causal and has no padding mask, as
    in Stable Diffusion; XLM-RoBERTa reads in both directions, and no padding. It always stays in
    evaluation mode, whatever `train()` says.

    Args:
        config: of CLIP's tower or of XLM-RoBERTa.
        weights: under the names of the tower: those of open_clip, or for XLM-RoBERTa transformers'.
        layer, final_norm: which states are the context. "last" with the norm is Stable Diffusion 1,
            "penultimate" with it is Stable Diffusion 2, "penultimate" without it is Stable
            Diffusion XL. XLM-RoBERTa has no other norm than those of its layers, so it takes no
            False.
    """

    def __init__(
        self,
        config: TowerConfig,
        weights: Mapping[str, Tensor],
        tokenizer: TextTokenizer,
        layer: Layer = "last",
        final_norm: bool = True,
    ):
        super().__init__()
        layer = as_layer(layer)
        if layer == "penultimate" and config.num_hidden_layers < 2:
            raise UserError("a text tower of one layer has no penultimate one; use layer='last'.")
        if isinstance(config, XlmRobertaConfig) and not final_norm:
            raise UserError("XLM-RoBERTa has a norm in each layer and none after them: final_norm.")
        if layer == "penultimate" and final_norm:
            # Like Stable Diffusion 2, drop the last layer; then the penultimate layer is the last.
            config, weights = without_last_layer(config, weights)
            layer = "last"
        self.config = config
        self.tokenizer = tokenizer
        self.layer: Layer = layer
        self.final_norm = final_norm
        self.tower = build_tower(config, weights)
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
        """Load a text encoder from disk, or by open_clip's name for it.

        Args:
            source: a run folder of train_clip.py, a pipeline folder, a folder of `CLIPTextModel` or
                `XLMRobertaModel`, the single file of a Stable Diffusion model, or NAME:PRETRAINED
                of open_clip, where PRETRAINED is a tag or a weights file, for example
                ViT-L-14-quickgelu:openai.
            layer, final_norm: None means as the files say, or else the last layer with the norm.
                Layers are those stored; what Stable Diffusion 2 stores already ends one early.

        Raises:
            MissingFileError: there is no text encoder.
            UserError: the files are damaged, or describe another network.
        """
        facts: dict[str, Any] = {}
        if Path(source).is_dir():
            folder = find_text_encoder(Path(source))
            config, weights = read_text_encoder(folder)
            tokenizer = read_tokenizer(folder, config)
            facts = read_facts(folder / PROVENANCE)
        elif Path(source).is_file():
            config, weights, tokenizer, facts = read_single_file(Path(source))
        elif ":" in str(source):
            config, weights, tokenizer = read_pretrained(str(source))
        else:
            raise MissingFileError(
                f"there is no text encoder folder {str(source)!r}. Give a run folder of "
                "train_clip.py, a pipeline folder, a CLIPTextModel folder, the single file of a "
                "whole model, or NAME:PRETRAINED of open_clip such as ViT-L-14-quickgelu:openai."
                f"{hub_hint(source)}"
            )
        if layer is None:
            kind = Literal["last", "penultimate"]
            layer = as_layer(check_type(facts.get("layer", "last"), kind, source, "layer"))
        if final_norm is None:
            value = facts.get("final_norm", True)
            final_norm = bool(check_type(value, bool, source, "final_norm"))
        return cls(config, weights, tokenizer, layer, final_norm).to(device)

    @property
    def width(self) -> int:
        """Size of each vector."""
        return self.config.hidden_size

    @property
    def tokens(self) -> int:
        """Context length: the number of vectors that each text becomes."""
        return self.tokenizer.context_length

    def tokenize(self, texts: list[str]) -> Int[Tensor, "b tokens"]:
        """Return token ids, truncated and padded to `tokens`."""
        if isinstance(texts, str):
            raise UserError(f"texts must be a list of strings, got one string: [{texts!r}]?")
        return self.tokenizer(texts)

    def count_tokens(self, text: str) -> int:
        """Return how many tokens the whole text needs, start and end token included.

        If these are more than `tokens`, the text is truncated.
        """
        return self.tokenizer.count(text)

    def forward(self, texts: list[str]) -> Float[Tensor, "b tokens width"]:
        return self.encode(self.tokenize(texts))

    @torch.no_grad()
    def encode(self, ids: Int[Tensor, "b tokens"]) -> Float[Tensor, "b tokens width"]:
        """Return the context of token ids, which include start, end and padding."""
        ids = ids.to(next(self.tower.parameters()).device)
        if len(ids) == 0:
            return torch.zeros(0, self.tokens, self.width, device=ids.device)
        # Contexts are compared by hash and value, so they are never computed under autocast.
        with torch.autocast(ids.device.type, enabled=False):
            return self.token_states(ids).float()

    def token_states(self, ids: Int[Tensor, "b tokens"]) -> Float[Tensor, "b tokens width"]:
        """Return the states after the chosen layer, in the precision of the weights."""
        if isinstance(self.tower, XlmRoberta):
            return self.tower(ids)
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
        """Do nothing: the encoder stays in evaluation mode, whatever the model around it does."""
        return super().train(False)

    @property
    def sha256(self) -> str:
        """Hash of the weights as numbers (float32, Hugging Face's names), whatever the file."""
        digest = hashlib.sha256()
        for key, value in sorted(named_as_transformers(self.tower).items()):
            digest.update(f"{key} {tuple(value.shape)}".encode())
            digest.update(value.float().contiguous().cpu().numpy().tobytes())
        return digest.hexdigest()

    def golden_embedding(self) -> Float[Tensor, "tokens width"]:
        """Return the context of a fixed sentence, in float32 whatever the weights' precision.

        Stored with a model, it shows later whether tokenizer, layer or activation have changed.
        """
        rounded = next(self.tower.parameters()).dtype != torch.float32
        exact = deepcopy(self).float() if rounded else self
        return exact([GOLDEN_SENTENCE])[0].cpu()

    def save(self, folder: str | Path, provenance: dict[str, Any] | None = None) -> None:
        """Write text_encoder/ and tokenizer/ of a diffusers pipeline folder.

        The `last_hidden_state` of transformers is then this encoder's output. Without the final
        norm it is `hidden_states[-2]`; only latentsmith.json says so, because Hugging Face's layout
        has no place for it.

        provenance: facts to keep with the weights (JSON), such as the data and the settings.
        """
        facts: dict[str, Any] = {"layer": self.layer, "final_norm": self.final_norm}
        facts |= {"sha256": self.sha256, "provenance": without_paths(provenance or {})}
        pad = self.tokenizer.pad
        readme = model_card_text(self.config, facts, tokens=self.tokens, pad=pad)
        weights = named_as_transformers(self.tower)
        with atomic_folder(Path(folder), keep_others=True) as partial:
            write_text_encoder(partial / "text_encoder", self.config, weights, facts, readme)
            write_tokenizer(self.tokenizer, partial / "tokenizer")


def as_layer(name: object) -> Layer:
    """Check the name of a layer.

    Raises:
        UserError: it is neither "last" nor "penultimate".
    """
    if name == "last":
        return "last"
    if name == "penultimate":
        return "penultimate"
    raise UserError(f"layer is {shown(name)}; choose 'last' or 'penultimate'.")


def without_last_layer(
    config: TowerConfig, weights: Mapping[str, Tensor]
) -> tuple[TowerConfig, dict[str, Tensor]]:
    """Return config and weights of a text tower that ends one layer earlier."""
    layers = config.num_hidden_layers - 1
    last = f"{config.LAYER_PREFIX}{layers}."
    rest = {key: value for key, value in weights.items() if not key.startswith(last)}
    return replace(config, num_hidden_layers=layers), rest
