"""A U-Net on disk: the folder that diffusers' UNet2DConditionModel.from_pretrained opens.

    config.json                            architecture
    diffusion_pytorch_model.safetensors    weights, and the provenance once more in its header
    latentsmith.json                       provenance: what no other library has a place for
    README.md                              the model card

JSON and safetensors only, nothing pickled. Files are replaced whole: a crash or a full disk leaves
the old folder or the new one.
"""

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from foundation.errors import MissingFileError, UserError
from foundation.files import read_json
from interop.diffusers_configs import UNET_CLASS, unet_fields
from interop.model_card import CARD
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
from ldm.unet.model_card import unet_card

CONFIG = "config.json"
STEM = "diffusion_pytorch_model"
WEIGHTS = f"{STEM}.safetensors"
PROVENANCE = "latentsmith.json"
TEXT_CHUNKS = "text_chunks"  # entry with the contexts that the U-Net was trained to read


def find_folder(folder: Path) -> Path:
    """The U-Net's folder in a run folder, in a pipeline folder, or the folder itself."""
    candidates = [folder / "model" / "unet", folder / "unet", folder / "model", folder]
    if found := find_weights(candidates, STEM):
        return found
    told = class_hint(folder) + pickle_hint(STEM, *candidates)
    raise MissingFileError(
        f"no U-Net in {folder}: looked for {WEIGHTS} in {', '.join(map(str, candidates))}.{told} "
        "Give a run folder of train_ldm.py, a pipeline folder with unet/ in it, or a unet folder."
    )


def read_config(folder: Path, fields: Collection[str]) -> dict[str, Any]:
    """The entries of config.json that UNetConfig has; all others must be at their usual value."""
    return unet_fields(read_json(folder / CONFIG), fields, folder / CONFIG)


def read_weights(folder: Path, expected: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights in fp32, checked against the names and shapes of `expected`."""
    weights = read_folder(folder, STEM)
    what = f"the U-Net that {CONFIG} beside it describes"
    check_state_dict(weights, expected, weights_file(folder, STEM), what)
    return {name: aligned_copy(weights[name]) for name in expected}


def write(folder: Path, network: nn.Module, config: dict, provenance: dict) -> None:
    """Writes the four files, whole or not at all."""
    header = {"format": "pt", "latentsmith": json.dumps(provenance)}
    weights = network.state_dict()
    texts = {
        CONFIG: json.dumps({"_class_name": UNET_CLASS, **config}, indent=2),
        PROVENANCE: json.dumps({"provenance": provenance}, indent=2),
        CARD: unet_card(config, weights, provenance, provenance.get(TEXT_CHUNKS, 1)),
    }
    write_weights_folder(folder, WEIGHTS, weights, header, texts)


def read_provenance(folder: Path) -> dict:
    """What `UNet.save` was told about these weights; empty for a foreign U-Net."""
    if folder.is_file():
        header = single_file.open_file(folder).header
        told = {TEXT_CHUNKS: header[TEXT_CHUNKS]} if TEXT_CHUNKS in header else {}
        return single_file.read_provenance(folder) | told
    return read_json(find_folder(folder) / PROVENANCE, default={}).get("provenance", {})


def read_text_chunks(facts: Mapping[str, Any], source: Path) -> int:
    """Return how many contexts of the text encoder a U-Net reads, one after the other.

    Stable Diffusion reads one, and so does a model that does not say it. The number is recorded in
    latentsmith.json of the U-Net and of the pipeline, and in the header of a single file.

    Args:
        facts: the entries of that file or header.
        source: where they come from, for the message.

    Raises:
        UserError: the number is not a whole number from 1 on.
    """
    chunks = facts.get(TEXT_CHUNKS, 1)
    if type(chunks) is not int or chunks < 1:
        raise UserError(
            f"{source} says that its U-Net was trained on {chunks!r} contexts of the text encoder "
            f'("{TEXT_CHUNKS}"); it must be a whole number from 1 on. Copy the model again.'
        )
    return chunks
