"""An autoencoder on disk: the folder of diffusers' AutoencoderKL, plus a file of provenance.

    config.json                             the architecture, under diffusers' names
    diffusion_pytorch_model.safetensors     the weights, under diffusers' keys
    latentsmith.json                        what diffusers has no place for
    README.md                               the model card

safetensors and JSON only. Every key, shape and setting must fit: nothing is loaded in part.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from autoencoder.model_card import card
from foundation.errors import MissingFileError
from foundation.files import read_json
from interop.diffusers_autoencoder import DOWN_BLOCK, UP_BLOCK, autoencoder_fields, current_names
from interop.model_card import CARD
from interop.safetensors_io import (
    has_weights,
    in_memory,
    read_folder,
    require,
    told_of_pickles,
    weights_file,
    write_files,
)
from interop.single_file import reader as single_file
from interop.state_dict_check import named_class

CONFIG = "config.json"
STEM = "diffusion_pytorch_model"
WEIGHTS = f"{STEM}.safetensors"
PROVENANCE = "latentsmith.json"


def find_model_folder(folder: Path) -> Path:
    """The folder that holds the weights: of a run, of a pipeline, or `folder` itself."""
    if not folder.is_dir():
        raise MissingFileError(
            f"{folder} is not a folder. Give a run folder, a pipeline folder with vae/ in it, or "
            f"the folder of an autoencoder ({CONFIG} and {WEIGHTS})."
        )
    candidates = [folder / "model", folder / "model" / "vae", folder / "vae", folder]
    for candidate in candidates:
        if has_weights(candidate, STEM):
            return candidate
    message = (
        f"{folder} holds no autoencoder: there is no {WEIGHTS} in it, in model/ or in vae/. "
        f"It holds: {', '.join(sorted(path.name for path in folder.iterdir())[:8]) or 'nothing'}."
    )
    if (folder / "state").is_dir():
        message += " It is a run that has not ended: the same command again goes on with it."
    raise MissingFileError(message + named_class(folder) + told_of_pickles(STEM, *candidates))


def read_config(folder: Path) -> dict[str, Any]:
    """The fields of an AutoencoderConfig, from the config.json of diffusers or from ours."""
    return autoencoder_fields(read_json(folder / CONFIG), folder / CONFIG)


def read_weights(folder: Path, expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """All weights in float32; they must have exactly the names and shapes of `expected`."""
    weights = current_names(read_folder(folder, STEM))
    what = f"the autoencoder that {CONFIG} beside it describes"
    require(weights, expected, weights_file(folder, STEM), what)
    return {key: in_memory(value) for key, value in weights.items()}


def write_folder(folder: Path, config: Any, weights: Mapping[str, Tensor], provenance: dict):
    """Writes the four files, whole or not at all."""
    written = describe(config)
    header = {"format": "pt", "config": json.dumps(written), "provenance": json.dumps(provenance)}
    texts = {
        CONFIG: json.dumps(written, indent=2) + "\n",
        PROVENANCE: json.dumps(provenance, indent=2) + "\n",
        CARD: card(written, weights, provenance),
    }
    write_files(folder, WEIGHTS, weights, header, texts)


def describe(config: Any) -> dict[str, Any]:
    """config.json: our fields, and what diffusers must be told besides."""
    levels = len(config.block_out_channels)
    return {
        "_class_name": "AutoencoderKL",
        **asdict(config),
        "act_fn": "silu",
        "down_block_types": [DOWN_BLOCK] * levels,
        "up_block_types": [UP_BLOCK] * levels,
    }


def read_provenance(source: str | Path) -> dict[str, Any]:
    """What `Autoencoder.save` was told; empty for what was not written here."""
    if Path(source).is_file():
        return single_file.read_provenance(Path(source), "autoencoder")
    return read_json(find_model_folder(Path(source)) / PROVENANCE, default={})
