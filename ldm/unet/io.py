"""A U-Net on disk: the folder that diffusers' UNet2DConditionModel.from_pretrained opens.

    config.json                            architecture
    diffusion_pytorch_model.safetensors    weights; its header repeats the provenance
    latentsmith.json                       provenance, for which diffusers has no place
    README.md                              the model card

There are only JSON and safetensors, no pickles. After a crash or on a full disk, the old folder or
the new one is there.
"""

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from foundation.errors import MissingFileError, UserError, shown
from foundation.files import read_json
from foundation.run_kind import hub_hint, run_hint
from interop.diffusers_configs import UNET_CLASS, unet_fields
from interop.model_card import CARD
from interop.provenance import read_facts, without_paths
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
MOST_CHUNKS = 1000
TEXT_CHUNKS = "text_chunks"  # entry: how many contexts the U-Net was trained to read


def find_folder(folder: Path) -> Path:
    """Return the U-Net's folder inside a run folder or a pipeline folder, or the folder itself.

    Raises:
        MissingFileError: there are no weights of a U-Net in any of them.
    """
    candidates = [folder / "model" / "unet", folder / "unet", folder / "model", folder]
    if found := find_weights(candidates, STEM):
        return found
    hint = run_hint(folder, "train_ldm.py") or class_hint(folder)
    hint += pickle_hint(STEM, *candidates)
    raise MissingFileError(
        f"no U-Net in {folder}: looked for {WEIGHTS} in {', '.join(map(str, candidates))}.{hint} "
        "Give the folder of a training run, a pipeline folder with unet/ in it, or a unet folder."
        f"{hub_hint(folder)}"
    )


def read_config(folder: Path, fields: Collection[str]) -> dict[str, Any]:
    """Read the entries of config.json that UNetConfig has.

    Raises:
        UserError: another entry has a value that is not supported.
    """
    return unet_fields(read_json(folder / CONFIG), fields, folder / CONFIG)


def read_weights(folder: Path, expected: dict[str, Tensor]) -> dict[str, Tensor]:
    """Read the weights in fp32.

    Raises:
        UserError: names or shapes differ from those of `expected`.
    """
    weights = read_folder(folder, STEM)
    model = f"the U-Net that {CONFIG} next to it describes"
    check_state_dict(weights, expected, weights_file(folder, STEM), model)
    return {name: aligned_copy(weights[name]) for name in expected}


def write(
    folder: Path, network: nn.Module, config: Mapping[str, Any], provenance: Mapping[str, Any]
) -> None:
    """Write the four files, all of them or none."""
    provenance = without_paths(provenance)
    header = {"format": "pt", "latentsmith": json.dumps(provenance)}
    weights = network.state_dict()
    texts = {
        CONFIG: json.dumps({"_class_name": UNET_CLASS, **config}, indent=2),
        PROVENANCE: json.dumps({"provenance": provenance}, indent=2),
        CARD: unet_card(config, weights, provenance, provenance.get(TEXT_CHUNKS, 1)),
    }
    write_weights_folder(folder, WEIGHTS, weights, header, texts)


def read_provenance(source: Path) -> dict[str, Any]:
    """Read the provenance that a U-Net was saved with; empty for a foreign U-Net.

    source: run folder, pipeline folder, unet folder or single file.
    """
    if source.is_file():
        provenance = single_file.read_provenance(source)
        header = single_file.open_file(source).header
        if TEXT_CHUNKS in header:
            return {**provenance, TEXT_CHUNKS: header[TEXT_CHUNKS]}
        return provenance
    return read_facts(find_folder(source) / PROVENANCE).get("provenance", {})


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
    if type(chunks) is not int or not 1 <= chunks <= MOST_CHUNKS:
        raise UserError(
            f"{source} says that its U-Net was trained on {shown(chunks)} contexts of the text "
            f'encoder ("{TEXT_CHUNKS}"); it must be a whole number from 1 to {MOST_CHUNKS}. Copy '
            "the model again."
        )
    return chunks
