"""A U-Net on disk: the folder that diffusers' UNet2DConditionModel.from_pretrained opens.

    config.json                            architecture
    diffusion_pytorch_model.safetensors    weights, and the provenance once more in its header
    latentsmith.json                       provenance: what no other library has a place for

JSON and safetensors only, nothing pickled. Files are replaced whole: a crash or a full disk leaves
the old folder or the new one. A pipeline folder, whose part this is, is found here, too.
"""

import hashlib
import json
import os
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

CLASS_NAME = "UNet2DConditionModel"
CONFIG = "config.json"
WEIGHTS = "diffusion_pytorch_model.safetensors"
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

# What diffusers' class can do beyond the U-Nets of SD 1.x and 2.x, with the values these have.
FIXED = {
    "act_fn": "silu",
    "addition_embed_type": None,
    "addition_embed_type_num_heads": 64,
    "addition_time_embed_dim": None,
    "attention_type": "default",
    "center_input_sample": False,
    "class_embed_type": None,
    "class_embeddings_concat": False,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "cross_attention_norm": None,
    "downsample_padding": 1,
    "dual_cross_attention": False,
    "encoder_hid_dim": None,
    "encoder_hid_dim_type": None,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "mid_block_only_cross_attention": None,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-5,
    "num_attention_heads": None,
    "num_class_embeds": None,
    "only_cross_attention": False,
    "projection_class_embeddings_input_dim": None,
    "resnet_out_scale_factor": 1,
    "resnet_skip_time_act": False,
    "resnet_time_scale_shift": "default",
    "reverse_transformer_layers_per_block": None,
    "time_cond_proj_dim": None,
    "time_embedding_act_fn": None,
    "time_embedding_dim": None,
    "time_embedding_type": "positional",
    "timestep_post_act": None,
    "transformer_layers_per_block": 1,
}


def find_folder(folder: Path) -> Path:
    """The U-Net's folder in a run folder, in a pipeline folder, or the folder itself."""
    candidates = [folder / "model" / "unet", folder / "unet", folder / "model", folder]
    for candidate in candidates:
        if (candidate / WEIGHTS).is_file():
            return candidate
    raise FileNotFoundError(
        f"no U-Net in {folder}: looked for {WEIGHTS} in {', '.join(map(str, candidates))}. "
        "Give a run folder of train_ldm.py, a pipeline folder with unet/ in it, or a unet folder."
    )


def find_pipeline(folder: Path) -> Path:
    for candidate in (folder / "model", folder):
        if (candidate / "model_index.json").is_file():
            return candidate
    unfinished = " The run is not finished: start the same command again." * (
        (folder / "state").is_dir()
    )
    raise FileNotFoundError(
        f"no model in {folder}: looked for model_index.json there and in {folder / 'model'}."
        f"{apparent_content(folder)}{unfinished} Give a run folder of train_ldm.py or a pipeline "
        "folder."
    )


def apparent_content(folder: Path) -> str:
    """What a folder holds instead of a pipeline, if it can be told; for the message."""
    for place in (folder / "model", folder):
        if (place / "text_encoder").is_dir():
            return " It holds another model: a text encoder."
        if (place / "config.json").is_file():
            config = read_json(place / "config.json")
            if kind := config.get("_class_name") or config.get("model_type"):
                return f" It holds another model: {kind}."
    return ""


def read_config(folder: Path, fields: set[str]) -> dict:
    """The entries of config.json that UNetConfig has; all others must be at their usual value."""
    path = folder / CONFIG
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder} has {WEIGHTS}, but no {CONFIG} that describes it. Copy it, too."
        )
    entries = read_json(path)
    if entries.get("_class_name", CLASS_NAME) != CLASS_NAME:
        raise ValueError(f"{path} describes a {entries['_class_name']}, not a {CLASS_NAME}.")
    try:
        return known_entries(entries, fields)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def read_json(path: Path) -> dict:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path} is missing. Copy the whole model folder again.") from error
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}). Copy the model folder again.") from error


def known_entries(entries: dict, fields: set[str]) -> dict:
    """Drops what is as in every SD 1.x and 2.x U-Net; refuses what is not, by name."""
    known, unsupported = {}, []
    for name, value in entries.items():
        values = value if isinstance(value, list) else [value]
        if name in fields:
            known[name] = tuple(value) if isinstance(value, list) else value
        elif not name.startswith("_") and any(
            name not in FIXED or one != FIXED[name] for one in values
        ):
            unsupported.append(f"{name}={value!r}")
    if unsupported:
        raise ValueError(
            "the U-Net here is that of Stable Diffusion 1.x and 2.x, which has no "
            + ", ".join(unsupported)
        )
    return known


def read_weights(folder: Path, expected: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights in fp32, checked against the names and shapes of `expected`."""
    path = folder / WEIGHTS
    try:
        weights = load_file(path)
    except SafetensorError as error:
        raise ValueError(
            f"{path} is damaged or no safetensors file ({error}). Copy the model folder again."
        ) from error
    problems = {
        "missing": [name for name in expected if name not in weights],
        "unexpected": [name for name in weights if name not in expected],
        "of another shape": [
            f"{name} is {tuple(weights[name].shape)} instead of {tuple(tensor.shape)}"
            for name, tensor in expected.items()
            if name in weights and weights[name].shape != tensor.shape
        ],
    }
    if any(problems.values()):
        raise ValueError(
            f"{path} does not hold the U-Net that {CONFIG} describes: "
            + "; ".join(
                f"{len(names)} {problem}: {', '.join(names[:3])}{', ...' if names[3:] else ''}"
                for problem, names in problems.items()
                if names
            )
        )
    return {name: weights[name].float() for name in expected}


def write(folder: Path, network: nn.Module, config: dict, provenance: dict) -> None:
    """Writes all three files beside the old ones, then puts them in their place."""
    folder.mkdir(parents=True, exist_ok=True)
    partial = {name: folder / f"{name}.partial" for name in (WEIGHTS, CONFIG, PROVENANCE)}
    weights = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    header = {"format": "pt", "latentsmith": json.dumps(provenance)}
    try:
        save_file(weights, partial[WEIGHTS], metadata=header)
        partial[CONFIG].write_text(json.dumps({"_class_name": CLASS_NAME, **config}, indent=2))
        partial[PROVENANCE].write_text(json.dumps({"provenance": provenance}, indent=2))
        for name, path in partial.items():
            os.replace(path, folder / name)
    finally:
        for path in partial.values():
            path.unlink(missing_ok=True)


def read_provenance(folder: Path) -> dict:
    """What `UNet.save` was told about these weights; empty for a foreign U-Net."""
    path = find_folder(folder) / PROVENANCE
    return json.loads(path.read_text())["provenance"] if path.is_file() else {}


def weights_sha256(folder: Path) -> str:
    with open(find_folder(folder) / WEIGHTS, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(file: Path, value: dict) -> None:
    file.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n")
