"""Text encoders on disk: folders of transformers' models, and single files.

The models are `CLIPTextModel` and `XLMRobertaModel`.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from conditioning.text_model import TextTowerConfig, empty_tower, from_hugging_face, to_hugging_face
from conditioning.token_ids import TextTokenizer
from conditioning.tokenizer import (
    Tokenizer,
    clip_tokenizer,
    holds_tokenizer,
    load_tokenizer,
    save_tokenizer,
    tokenizer_from_settings,
)
from conditioning.towers import (
    TowerConfig,
    expected_by_transformers,
    named_as_tower,
    select_weights,
    tower_config,
)
from conditioning.unigram_tokenizer import (
    UnigramTokenizer,
    holds_unigram,
    load_unigram,
    save_unigram,
)
from conditioning.xlm_roberta import XlmRobertaConfig
from foundation.errors import MissingFileError, UserError
from foundation.files import read_json, restore, to_json
from foundation.json_reading import check_type
from foundation.run_kind import run_hint
from interop.model_card import CARD
from interop.provenance import read_facts
from interop.safetensors_io import read_folder, weights_file, write_weights_folder
from interop.single_file import reader as single_file
from interop.state_dict_check import check_state_dict, class_hint

STEM = "model"  # file name of the weights, without its ending
PROVENANCE = "latentsmith.json"
MODEL_TYPES = (TextTowerConfig.MODEL_TYPE, "clip", XlmRobertaConfig.MODEL_TYPE)


def find_text_encoder(source: Path) -> Path:
    """Return the folder of a text encoder: inside a run or a pipeline, or `source` itself.

    Raises:
        MissingFileError: there is no text encoder in any of these places.
    """
    places = [source / "model" / "text_encoder", source / "text_encoder", source]
    restore(source / "model", source, *places)
    for folder in places:
        content = read_json(folder / "config.json", default={})
        if content.get("model_type") in MODEL_TYPES:
            return folder
    hint = run_hint(source, "train_clip.py") or class_hint(source)
    raise MissingFileError(
        f"{source} holds no text encoder: no config.json of a CLIPTextModel or XLMRobertaModel in "
        f"{', '.join(str(folder) for folder in places)}.{hint} Give a run folder of "
        "train_clip.py, a pipeline folder with text_encoder/, or a CLIPTextModel folder."
    )


def read_config(file: Path) -> TowerConfig:
    """Read the config.json of a text encoder, or of a whole CLIP."""
    content = read_json(file)
    inner = check_type(content.get("text_config", content), dict, file, "text_config")
    return tower_config(inner, file)


def read_text_encoder(folder: Path) -> tuple[TowerConfig, dict[str, Tensor]]:
    """Read config and weights; the weights are complete, and under the tower's names."""
    config = read_config(folder / "config.json")
    weights = select_weights(config, read_folder(folder, STEM))
    what = f"the {config.MODEL_CLASS} that config.json in the same folder describes"
    expected = expected_by_transformers(config)
    check_state_dict(weights, expected, weights_file(folder, STEM), what)
    return config, named_as_tower(config, weights)


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


def read_tokenizer(folder: Path, config: TowerConfig) -> TextTokenizer:
    """Read the tokenizer that belongs to a text encoder, from its folder or from ../tokenizer.

    If there is none for a CLIP, it is CLIP's tokenizer as transformers' `CLIPTokenizer` has it,
    padding with the end token.

    Raises:
        MissingFileError: there is none for an XLM-RoBERTa.
        UserError: the tokenizer gives ids that the text encoder does not have.
    """
    places = [folder, Path(os.path.abspath(folder)).parent / "tokenizer"]  # "." has no parent
    if isinstance(config, XlmRobertaConfig):
        return load_unigram(next(filter(holds_unigram, places), folder), config)
    positions = config.max_position_embeddings
    for place in places:
        if holds_tokenizer(place):
            tokenizer = load_tokenizer(place, positions)
            break
    else:
        tokenizer = clip_tokenizer(positions)
    if tokenizer.largest_id >= config.vocab_size:
        raise UserError(
            f"the text encoder in {folder} has {config.vocab_size} tokens, but its tokenizer gives "
            f"ids up to {tokenizer.largest_id}. Put the tokenizer with which it was trained "
            f"(vocab.json and merges.txt, or tokenizer.json) into {places[0]} or {places[1]}."
        )
    return tokenizer


def open_tokenizer(source: Path) -> TextTokenizer:
    """Read the tokenizer of a text encoder, but not its weights.

    source: a run folder of train_clip.py, a pipeline folder, or a CLIPTextModel folder.

    Raises:
        UserError: there is no text encoder, or it is damaged.
    """
    folder = find_text_encoder(source)
    return read_tokenizer(folder, read_config(folder / "config.json"))


def write_text_encoder(
    folder: Path,
    config: TowerConfig,
    weights: Mapping[str, Tensor],
    facts: Mapping[str, Any],
    readme: str,
) -> None:
    """Write what transformers' class for this config opens, all files or none.

    Args:
        weights: under transformers' names.
        facts: for latentsmith.json, because transformers has no place for them.
        readme: text of the model card.
    """
    content: dict[str, Any] = {
        "architectures": [config.MODEL_CLASS],
        "model_type": config.MODEL_TYPE,
    }
    if isinstance(config, XlmRobertaConfig):
        # With this, the pipelines of diffusers pass the mask of the padding.
        content |= {"use_attention_mask": True}
    # float32 for any stored precision: by default diffusers loads the other models of a pipeline in
    # float32, and a pipeline of two precisions does not run.
    content |= {**asdict(config), "dtype": "float32", "torch_dtype": "float32"}
    header = {"format": "pt", "latentsmith": json.dumps(facts)}
    texts = {"config.json": to_json(content), PROVENANCE: to_json(facts), CARD: readme}
    write_weights_folder(folder, f"{STEM}.safetensors", weights, header, texts)


def write_tokenizer(tokenizer: TextTokenizer, folder: Path) -> None:
    """Write what transformers' tokenizer of this kind opens."""
    if isinstance(tokenizer, UnigramTokenizer):
        save_unigram(tokenizer, folder)
    elif isinstance(tokenizer, Tokenizer):
        save_tokenizer(tokenizer, folder)
    else:
        raise TypeError(f"{type(tokenizer).__name__} has no files")
