"""An autoencoder on disk: the folder of diffusers' AutoencoderKL, plus a file of provenance.

    config.json                             the architecture, under diffusers' names
    diffusion_pytorch_model.safetensors     the weights, under diffusers' keys
    latentsmith.json                        provenance, for which diffusers has no place
    README.md                               the model card

safetensors and JSON only. Every key, shape and setting must fit: nothing is loaded in part.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from autoencoder.model_card import model_card_text
from foundation.errors import MissingFileError
from foundation.files import read_json
from foundation.run_kind import hub_hint, run_hint
from interop.diffusers_configs import (
    AUTOENCODER_CLASS,
    DOWN_BLOCK,
    UP_BLOCK,
    autoencoder_fields,
)
from interop.key_mapping import update_attention_keys
from interop.model_card import CARD
from interop.provenance import checked_provenance, without_paths
from interop.safetensors_io import (
    aligned_copy,
    find_weights,
    pickle_hint,
    read_folder,
    weights_file,
    write_weights_folder,
)
from interop.single_file import reader as single_file
from interop.state_dict_check import check_state_dict, class_hint

CONFIG = "config.json"
STEM = "diffusion_pytorch_model"  # file name of the weights, without its ending
WEIGHTS = f"{STEM}.safetensors"
PROVENANCE = "latentsmith.json"


def find_model_folder(folder: Path) -> Path:
    """Return the folder that holds the weights: inside a run or a pipeline, or `folder` itself.

    Raises:
        MissingFileError: there is no autoencoder in any of these places.
    """
    candidates = [folder / "model", folder / "model" / "vae", folder / "vae", folder]
    if found := find_weights(candidates, STEM):
        return found
    if not folder.is_dir():
        raise MissingFileError(
            f"{folder} is not a folder. Give a run folder, a pipeline folder with vae/ in it, or "
            f"the folder of an autoencoder ({CONFIG} and {WEIGHTS}).{hub_hint(folder)}"
        )
    message = (
        f"{folder} holds no autoencoder: there is no {WEIGHTS} in it, in model/ or in vae/. "
        f"It holds: {', '.join(sorted(path.name for path in folder.iterdir())[:8]) or 'nothing'}."
    )
    hint = run_hint(folder, "train_vae.py") or class_hint(folder)
    raise MissingFileError(message + hint + pickle_hint(STEM, *candidates))


def read_config(folder: Path) -> dict[str, Any]:
    """Return the fields of an AutoencoderConfig, from the config.json of diffusers or from ours."""
    return autoencoder_fields(read_json(folder / CONFIG), folder / CONFIG)


def read_weights(folder: Path, expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Read all weights in float32; they must have exactly the names and shapes of `expected`."""
    weights = update_attention_keys(read_folder(folder, STEM))
    what = f"the autoencoder that {CONFIG} in the same folder describes"
    check_state_dict(weights, expected, weights_file(folder, STEM), what)
    return {key: aligned_copy(value) for key, value in weights.items()}


def write_folder(
    folder: Path,
    fields: Mapping[str, Any],
    weights: Mapping[str, Tensor],
    provenance: Mapping[str, Any],
) -> None:
    """Write the four files of an autoencoder, all or none.

    fields: those of the AutoencoderConfig.
    """
    config, provenance = diffusers_config(fields), without_paths(provenance)
    header = {"format": "pt", "config": json.dumps(config), "provenance": json.dumps(provenance)}
    texts = {
        CONFIG: json.dumps(config, indent=2) + "\n",
        PROVENANCE: json.dumps(provenance, indent=2) + "\n",
        CARD: model_card_text(config, weights, provenance),
    }
    write_weights_folder(folder, WEIGHTS, weights, header, texts)


def diffusers_config(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of config.json: our fields, and those that only diffusers needs.

    fields: those of the AutoencoderConfig.
    """
    levels = len(fields["block_out_channels"])
    return {
        "_class_name": AUTOENCODER_CLASS,
        **fields,
        "act_fn": "silu",
        "down_block_types": [DOWN_BLOCK] * levels,
        "up_block_types": [UP_BLOCK] * levels,
    }


def read_provenance(source: str | Path) -> dict[str, Any]:
    """Return the provenance that was passed to `Autoencoder.save`; empty for foreign files."""
    source = Path(source)
    if source.is_file():
        return single_file.read_provenance(source, "autoencoder")
    file = find_model_folder(source) / PROVENANCE
    return checked_provenance(read_json(file, default={}), file)
