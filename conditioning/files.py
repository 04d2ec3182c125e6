"""Hugging Face `CLIPTextModel` folders: config.json and model.safetensors."""

import json
import os
from dataclasses import asdict
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from conditioning.tokenizer import Tokenizer
from conditioning.tokenizer_files import (
    clip_tokenizer,
    dump,
    holds_tokenizer,
    load_tokenizer,
    read_json,
)
from conditioning.tower import (
    TextTowerConfig,
    compare_weights,
    empty_tower,
    from_hugging_face,
    to_hugging_face,
)

PREFIX = "text_model."
BESIDE_THE_TOWER = (  # parts of a whole CLIP, and indices that older versions of transformers wrote
    "text_model.embeddings.position_ids",
    "text_projection.",
    "visual_projection.",
    "vision_model.",
    "logit_scale",
)


def find_text_encoder(source: Path) -> Path:
    """The `CLIPTextModel` folder inside a run folder or a pipeline folder, or the folder itself."""
    looked_at = [source / "model" / "text_encoder", source / "text_encoder", source]
    for folder in looked_at:
        content = read_json(folder / "config.json", default={})
        if content.get("model_type") in ("clip_text_model", "clip"):
            return folder
    named = read_json(source / "config.json", default={})
    kind = named.get("_class_name") or named.get("model_type")
    seems = f" Its config.json says it is a {kind}." if kind else ""
    if (source / "state").is_dir():
        seems = " It looks like a run that has not finished; start the same command again."
    raise FileNotFoundError(
        f"{source} holds no text encoder: no config.json of a CLIPTextModel in "
        f"{', '.join(str(folder) for folder in looked_at)}.{seems} Needed is a run folder of "
        "train_clip.py, a pipeline folder with text_encoder/, or a CLIPTextModel folder."
    )


def read_text_encoder(folder: Path) -> tuple[TextTowerConfig, dict[str, Tensor]]:
    """The config and the weights in open_clip's names, complete and of the right shapes."""
    content = read_json(folder / "config.json")
    config = TextTowerConfig.from_dict(content.get("text_config", content))
    weights = {}
    for key, value in read_weights(folder).items():
        if not key.startswith(BESIDE_THE_TOWER):
            weights[key if key.startswith(PREFIX) else PREFIX + key] = value
    problems = compare_weights(weights, to_hugging_face(empty_tower(config).state_dict()))
    if problems:
        raise ValueError(
            f"the weights in {folder} are not those of the CLIPTextModel that its config.json "
            f"describes. {len(problems)} differences, first: {'; '.join(problems[:3])}."
        )
    return config, from_hugging_face(weights, config.num_hidden_layers)


def read_tokenizer(folder: Path, config: TextTowerConfig) -> Tokenizer:
    """The tokenizer beside the weights: in the same folder, or in ../tokenizer.

    Without one, a tower of CLIP's vocabulary gets CLIP's tokenizer as `CLIPTokenizer` sets it up:
    padded with the end token.
    """
    positions = config.max_position_embeddings
    places = [folder, folder.parent / "tokenizer"]
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
        raise ValueError(
            f"the text encoder in {folder} knows {config.vocab_size} tokens, its tokenizer gives "
            f"ids up to {largest}. Looked for vocab.json and merges.txt, or tokenizer.json, in "
            f"{places[0]} and {places[1]}; put the tokenizer there that the encoder was trained "
            "with."
        )
    return tokenizer


def read_weights(folder: Path) -> dict[str, Tensor]:
    """All tensors of the folder: one file, shards with an index, or a variant such as fp16."""
    indices = sorted(folder.glob("*.safetensors.index*.json"))
    single = folder / "model.safetensors"
    files = [single] if single.is_file() else sorted(folder.glob("*.safetensors"))
    if not single.is_file() and indices:
        shards = read_json(indices[0])["weight_map"].values()
        files = [folder / name for name in sorted(set(shards))]
    elif len(files) > 1:
        raise ValueError(
            f"{folder} holds several weights files and no index: "
            f"{', '.join(file.name for file in files)}. Keep the one that is meant, as "
            "model.safetensors."
        )
    if not files:
        pickled = sorted(file.name for file in folder.glob("*.bin"))
        found = (
            f"{', '.join(pickled)} is a pickle, which is not opened" if pickled else "no weights"
        )
        raise FileNotFoundError(
            f"{folder} has no model.safetensors ({found}). Copy or download the safetensors file."
        )
    weights = {}
    for file in files:
        weights |= read_safetensors(file)
    return weights


def read_safetensors(file: Path) -> dict[str, Tensor]:
    try:
        return load_file(file)
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{file} is missing, though a file beside it names it. Copy the whole folder again."
        ) from None
    except SafetensorError as error:
        raise ValueError(
            f"{file} is not a whole safetensors file ({error}). Copy or download it again."
        ) from None


def write_text_encoder(
    folder: Path, config: TextTowerConfig, weights: dict[str, Tensor], facts: dict
) -> None:
    """Writes what `transformers.CLIPTextModel.from_pretrained` opens.

    weights: open_clip's names. facts: what transformers has no place for, for latentsmith.json.
    """
    folder.mkdir(parents=True, exist_ok=True)
    content = {"architectures": ["CLIPTextModel"], "model_type": "clip_text_model"}
    content |= {**asdict(config), "dtype": "float32", "torch_dtype": "float32"}
    tensors = {key: value.contiguous().cpu() for key, value in to_hugging_face(weights).items()}
    partial = folder / "model.safetensors.partial"
    save_file(tensors, partial, metadata={"format": "pt", "latentsmith": json.dumps(facts)})
    os.replace(partial, folder / "model.safetensors")
    (folder / "config.json").write_text(dump(content), encoding="utf-8")
    (folder / "latentsmith.json").write_text(dump(facts), encoding="utf-8")
