"""Text encoders on disk: folders of transformers' `CLIPTextModel`, and single files."""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from conditioning.text_model import TextTowerConfig, empty_tower, from_hugging_face, to_hugging_face
from conditioning.tokenizer import (
    Tokenizer,
    clip_tokenizer,
    holds_tokenizer,
    load_tokenizer,
    tokenizer_from_settings,
)
from foundation.errors import MissingFileError, UserError
from foundation.files import read_json, restore, to_json
from foundation.json_reading import check_type
from foundation.run_kind import run_hint
from interop.key_mapping import clip_text_weights
from interop.model_card import CARD
from interop.provenance import read_facts
from interop.safetensors_io import read_folder, weights_file, write_weights_folder
from interop.single_file import reader as single_file
from interop.state_dict_check import check_state_dict, class_hint

STEM = "model"  # file name of the weights, without its ending
PROVENANCE = "latentsmith.json"


def find_text_encoder(source: Path) -> Path:
    """Return the `CLIPTextModel` folder: inside a run or a pipeline, or `source` itself.

    Raises:
        MissingFileError: there is no text encoder in any of these places.
    """
    places = [source / "model" / "text_encoder", source / "text_encoder", source]
    restore(source / "model", source, *places)
    for folder in places:
        content = read_json(folder / "config.json", default={})
        if content.get("model_type") in ("clip_text_model", "clip"):
            return folder
    hint = run_hint(source, "train_clip.py") or class_hint(source)
    raise MissingFileError(
        f"{source} holds no text encoder: no config.json of a CLIPTextModel in "
        f"{', '.join(str(folder) for folder in places)}.{hint} Give a run folder of "
        "train_clip.py, a pipeline folder with text_encoder/, or a CLIPTextModel folder."
    )


def read_config(file: Path) -> TextTowerConfig:
    """Read the config.json of a CLIPTextModel, or of a whole CLIP."""
    content = read_json(file)
    inner = check_type(content.get("text_config", content), dict, file, "text_config")
    return TextTowerConfig.from_dict(inner, file)


def read_text_encoder(folder: Path) -> tuple[TextTowerConfig, dict[str, Tensor]]:
    """Read config and weights; the weights are complete, and under open_clip's names."""
    config = read_config(folder / "config.json")
    weights = clip_text_weights(read_folder(folder, STEM))
    expected = to_hugging_face(empty_tower(config).state_dict())
    what = "the CLIPTextModel that config.json in the same folder describes"
    check_state_dict(weights, expected, weights_file(folder, STEM), what)
    return config, from_hugging_face(weights, config.num_hidden_layers)


def read_provenance(source: str | Path) -> dict[str, Any]:
    """Return the provenance that was passed to `TextEncoder.save`; empty for foreign files."""
    source = Path(source)
    if source.is_file():
        return single_file.read_provenance(source, "text_encoder")
    if not source.is_dir():  # NAME:PRETRAINED
        return {}
    return read_facts(find_text_encoder(source) / PROVENANCE).get("provenance", {})


def read_single_file(
    file: Path,
) -> tuple[TextTowerConfig, dict[str, Tensor], Tokenizer, dict[str, Any]]:
    """Read the text encoder in the single file of a whole model.

    Returns:
        Config, weights under open_clip's names, tokenizer, and facts such as `layer`.
    """
    part = single_file.read_text_encoder(file)
    config = TextTowerConfig.from_dict(part.config, file)
    tower = empty_tower(config).state_dict()
    if "token_embedding.weight" in part.weights:  # already open_clip's
        weights = part.state_dict_for(tower)
    else:
        weights = from_hugging_face(
            part.state_dict_for(to_hugging_face(tower)), config.num_hidden_layers
        )
    settings = check_type(part.config.get("tokenizer"), dict, file, "tokenizer")
    tokenizer = tokenizer_from_settings(settings, config.max_position_embeddings, file)
    return config, weights, tokenizer, part.config


def read_tokenizer(folder: Path, config: TextTowerConfig) -> Tokenizer:
    """Read the tokenizer that belongs to a text encoder, from its folder or from ../tokenizer.

    If there is none, it is CLIP's tokenizer as transformers' `CLIPTokenizer` has it, padding with
    the end token.

    Raises:
        UserError: the tokenizer gives ids that the text encoder does not have.
    """
    positions = config.max_position_embeddings
    places = [folder, Path(os.path.abspath(folder)).parent / "tokenizer"]  # "." has no parent
    for place in places:
        if holds_tokenizer(place):
            tokenizer = load_tokenizer(place, positions)
            break
    else:
        tokenizer = clip_tokenizer(positions)
    largest = max(
        *tokenizer.vocabulary.values(), *(token.id for token in tokenizer.special.values())
    )
    if largest >= config.vocab_size:
        raise UserError(
            f"the text encoder in {folder} has {config.vocab_size} tokens, but its tokenizer gives "
            f"ids up to {largest}. Put the tokenizer with which the encoder was trained "
            f"(vocab.json and merges.txt, or tokenizer.json) into {places[0]} or {places[1]}."
        )
    return tokenizer


def open_tokenizer(source: Path) -> Tokenizer:
    """Read the tokenizer of a text encoder, but not its weights.

    source: a run folder of train_clip.py, a pipeline folder, or a CLIPTextModel folder.

    Raises:
        UserError: there is no text encoder, or it is damaged.
    """
    folder = find_text_encoder(source)
    return read_tokenizer(folder, read_config(folder / "config.json"))


def write_text_encoder(
    folder: Path,
    config: TextTowerConfig,
    weights: Mapping[str, Tensor],
    facts: Mapping[str, Any],
    readme: str,
) -> None:
    """Write what `transformers.CLIPTextModel.from_pretrained` opens, all files or none.

    Args:
        weights: under open_clip's names.
        facts: for latentsmith.json, because transformers has no place for them.
        readme: text of the model card.
    """
    content = {"architectures": ["CLIPTextModel"], "model_type": "clip_text_model"}
    # float32 for any stored precision: by default diffusers loads the other models of a pipeline in
    # float32, and a pipeline of two precisions does not run.
    content |= {**asdict(config), "dtype": "float32", "torch_dtype": "float32"}
    header = {"format": "pt", "latentsmith": json.dumps(facts)}
    texts = {"config.json": to_json(content), PROVENANCE: to_json(facts), CARD: readme}
    write_weights_folder(folder, f"{STEM}.safetensors", to_hugging_face(weights), header, texts)
