"""Hugging Face `CLIPTextModel` folders: config.json and model.safetensors."""

import json
import os
from dataclasses import asdict
from pathlib import Path

from torch import Tensor

from conditioning.text_model import TextTowerConfig, empty_tower, from_hugging_face, to_hugging_face
from conditioning.tokenizer import Tokenizer
from conditioning.tokenizer_io import (
    clip_tokenizer,
    dump,
    holds_tokenizer,
    load_tokenizer,
    tokenizer_from,
)
from foundation.errors import MissingFileError, UserError
from foundation.files import read_json
from interop.key_mapping import clip_text_weights
from interop.model_card import CARD
from interop.safetensors_io import read_folder, weights_file, write_weights_folder
from interop.single_file import reader as single_file
from interop.state_dict_check import check_state_dict, class_hint

STEM = "model"


def find_text_encoder(source: Path) -> Path:
    """The `CLIPTextModel` folder inside a run folder or a pipeline folder, or the folder itself."""
    looked_at = [source / "model" / "text_encoder", source / "text_encoder", source]
    for folder in looked_at:
        content = read_json(folder / "config.json", default={})
        if content.get("model_type") in ("clip_text_model", "clip"):
            return folder
    seems = class_hint(source)
    if (source / "state").is_dir():
        seems = " It looks like a run that has not finished; start the same command again."
    raise MissingFileError(
        f"{source} holds no text encoder: no config.json of a CLIPTextModel in "
        f"{', '.join(str(folder) for folder in looked_at)}.{seems} Needed is a run folder of "
        "train_clip.py, a pipeline folder with text_encoder/, or a CLIPTextModel folder."
    )


def read_text_encoder(folder: Path) -> tuple[TextTowerConfig, dict[str, Tensor]]:
    """The config and the weights in open_clip's names, complete and of the right shapes."""
    content = read_json(folder / "config.json")
    config = TextTowerConfig.from_dict(content.get("text_config", content))
    weights = clip_text_weights(read_folder(folder, STEM))
    expected = to_hugging_face(empty_tower(config).state_dict())
    what = "the CLIPTextModel that config.json beside it describes"
    check_state_dict(weights, expected, weights_file(folder, STEM), what)
    return config, from_hugging_face(weights, config.num_hidden_layers)


def read_provenance(source: str | Path) -> dict:
    """What `TextEncoder.save` was told about the weights; empty for what was not written here."""
    if Path(source).is_file():
        return single_file.read_provenance(Path(source), "text_encoder")
    if not Path(source).is_dir():  # NAME:PRETRAINED
        return {}
    facts = read_json(find_text_encoder(Path(source)) / "latentsmith.json", default={})
    return facts.get("provenance", {})


def read_single_file(file: Path) -> tuple[TextTowerConfig, dict[str, Tensor], Tokenizer, dict]:
    """Config, weights in open_clip's names, tokenizer, and which states are the context, of the
    text encoder in the file of a whole model."""
    part = single_file.read_text_encoder(file)
    config = TextTowerConfig.from_dict(part.config)
    tower = empty_tower(config).state_dict()
    if "token_embedding.weight" in part.weights:  # already open_clip's
        weights = part.state_dict_for(tower)
    else:
        weights = from_hugging_face(
            part.state_dict_for(to_hugging_face(tower)), config.num_hidden_layers
        )
    tokenizer = tokenizer_from(part.config["tokenizer"], config.max_position_embeddings)
    return config, weights, tokenizer, part.config


def read_tokenizer(folder: Path, config: TextTowerConfig) -> Tokenizer:
    """The tokenizer beside the weights: in the same folder, or in ../tokenizer.

    Without one, a tower of CLIP's vocabulary gets CLIP's tokenizer as `CLIPTokenizer` sets it up:
    padded with the end token.
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
            f"the text encoder in {folder} knows {config.vocab_size} tokens, its tokenizer gives "
            f"ids up to {largest}. Looked for vocab.json and merges.txt, or tokenizer.json, in "
            f"{places[0]} and {places[1]}; put the tokenizer there that the encoder was trained "
            "with."
        )
    return tokenizer


def write_text_encoder(
    folder: Path, config: TextTowerConfig, weights: dict[str, Tensor], facts: dict, readme: str
) -> None:
    """Writes what `transformers.CLIPTextModel.from_pretrained` opens.

    weights: open_clip's names. facts: what transformers has no place for, for latentsmith.json.
    """
    content = {"architectures": ["CLIPTextModel"], "model_type": "clip_text_model"}
    # Whatever they are stored in: diffusers loads the other parts so unless told otherwise, and a
    # pipeline of two precisions does not run.
    content |= {**asdict(config), "dtype": "float32", "torch_dtype": "float32"}
    header = {"format": "pt", "latentsmith": json.dumps(facts)}
    texts = {"config.json": dump(content), "latentsmith.json": dump(facts), CARD: readme}
    write_weights_folder(folder, f"{STEM}.safetensors", to_hugging_face(weights), header, texts)
