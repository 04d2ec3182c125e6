"""A U-Net on disk: the folder that diffusers' UNet2DConditionModel.from_pretrained opens.

    config.json                            architecture
    diffusion_pytorch_model.safetensors    weights, and the provenance once more in its header
    latentsmith.json                       provenance: what no other library has a place for
    README.md                              the model card

JSON and safetensors only, nothing pickled. Files are replaced whole: a crash or a full disk leaves
the old folder or the new one. A pipeline folder, whose part this is, is found here, too.
"""

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from foundation.errors import MissingFileError
from foundation.files import read_json
from interop.diffusers_configs import CLASS_NAME, unet_fields
from interop.lora import WEIGHTS as LORA
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
from ldm.model_card import unet_card
from ldm.text_chunks import TEXT_CHUNKS

CONFIG = "config.json"
STEM = "diffusion_pytorch_model"
WEIGHTS = f"{STEM}.safetensors"
PROVENANCE = "latentsmith.json"
MODEL_INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "feature_extractor": [None, None],
    "requires_safety_checker": False,
    "safety_checker": [None, None],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}


def find_folder(folder: Path) -> Path:
    """The U-Net's folder in a run folder, in a pipeline folder, or the folder itself."""
    candidates = [folder / "model" / "unet", folder / "unet", folder / "model", folder]
    for candidate in candidates:
        if has_weights(candidate, STEM):
            return candidate
    told = named_class(folder) + told_of_pickles(STEM, *candidates)
    raise MissingFileError(
        f"no U-Net in {folder}: looked for {WEIGHTS} in {', '.join(map(str, candidates))}.{told} "
        "Give a run folder of train_ldm.py, a pipeline folder with unet/ in it, or a unet folder."
    )


def find_pipeline(folder: Path) -> Path:
    for candidate in (folder / "model", folder):
        if (candidate / "model_index.json").is_file():
            return candidate
    unfinished = " The run is not finished: start the same command again." * (
        (folder / "state").is_dir()
    )
    if any((place / LORA).is_file() for place in (folder / "model", folder)):
        unfinished = " It holds a LoRA: give it with --lora, and as the model what it changes."
    raise MissingFileError(
        f"no model in {folder}: looked for model_index.json there and in {folder / 'model'}."
        f"{named_class(folder)}{unfinished} Give a run folder of train_ldm.py or a pipeline "
        "folder."
    )


def read_config(folder: Path, fields: Collection[str]) -> dict[str, Any]:
    """The entries of config.json that UNetConfig has; all others must be at their usual value."""
    return unet_fields(read_json(folder / CONFIG), fields, folder / CONFIG)


def read_weights(folder: Path, expected: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights in fp32, checked against the names and shapes of `expected`."""
    weights = read_folder(folder, STEM)
    what = f"the U-Net that {CONFIG} beside it describes"
    require(weights, expected, weights_file(folder, STEM), what)
    return {name: in_memory(weights[name]) for name in expected}


def write(folder: Path, network: nn.Module, config: dict, provenance: dict) -> None:
    """Writes the four files, whole or not at all."""
    header = {"format": "pt", "latentsmith": json.dumps(provenance)}
    weights = network.state_dict()
    texts = {
        CONFIG: json.dumps({"_class_name": CLASS_NAME, **config}, indent=2),
        PROVENANCE: json.dumps({"provenance": provenance}, indent=2),
        CARD: unet_card(config, weights, provenance),
    }
    write_files(folder, WEIGHTS, weights, header, texts)


def read_provenance(folder: Path) -> dict:
    """What `UNet.save` was told about these weights; empty for a foreign U-Net."""
    if folder.is_file():
        header = single_file.open_file(folder).header
        told = {TEXT_CHUNKS: header[TEXT_CHUNKS]} if TEXT_CHUNKS in header else {}
        return single_file.read_provenance(folder) | told
    return read_json(find_folder(folder) / PROVENANCE, default={}).get("provenance", {})


def read_model_provenance(source: Path) -> dict:
    """What `TextToImage.save` was told, or whoever exported a single file; empty if nobody was."""
    if source.is_file():
        return single_file.read_provenance(source)
    return read_json(find_pipeline(source) / PROVENANCE, default={}).get("provenance", {})
