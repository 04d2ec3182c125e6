"""An autoencoder on disk: the folder of diffusers' AutoencoderKL, plus a file of provenance.

    config.json                             the architecture, under diffusers' names
    diffusion_pytorch_model.safetensors     the weights, under diffusers' keys
    latentsmith.json                        what diffusers has no place for

safetensors and JSON only. Every key, shape and setting must fit: nothing is loaded in part.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

CONFIG = "config.json"
WEIGHTS = "diffusion_pytorch_model.safetensors"
PROVENANCE = "latentsmith.json"

# What a config.json of diffusers means when it leaves a field out. Here and nowhere else stands
# 0.18215, the latent scale of Stable Diffusion 1.x, whose files are older than the field. What is
# saved here always states its own, which is 1.0 (see `autoencoder.statistics`).
DIFFUSERS_DEFAULTS = {
    "in_channels": 3,
    "out_channels": 3,
    "block_out_channels": (64,),
    "layers_per_block": 1,
    "latent_channels": 4,
    "norm_num_groups": 32,
    "use_quant_conv": True,
    "use_post_quant_conv": True,
    "mid_block_add_attention": True,
    "scaling_factor": 0.18215,
    "shift_factor": None,
    "sample_size": 32,
    "force_upcast": True,
}
DOWN_BLOCK, UP_BLOCK = "DownEncoderBlock2D", "UpDecoderBlock2D"

# Names of the attention layers in the files of diffusers before 0.17.
OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def find_model_folder(folder: Path) -> Path:
    """The folder that holds the weights: of a run, of a pipeline, or `folder` itself."""
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{folder} is not a folder. Give a run folder, a pipeline folder with vae/ in it, or "
            f"the folder of an autoencoder ({CONFIG} and {WEIGHTS})."
        )
    for candidate in (folder / "model", folder / "model" / "vae", folder / "vae", folder):
        if (candidate / WEIGHTS).is_file():
            return candidate
    message = (
        f"{folder} holds no autoencoder: there is no {WEIGHTS} in it, in model/ or in vae/. "
        f"It holds: {', '.join(sorted(path.name for path in folder.iterdir())[:8]) or 'nothing'}."
    )
    if (folder / "state").is_dir():
        message += " It is a run that has not ended: the same command again goes on with it."
    elif list(folder.glob("*.bin")) + list(folder.glob("*.ckpt")):
        message += " Pickled weights are not read here; export.py converts them to safetensors."
    raise FileNotFoundError(message)


def read_config(folder: Path) -> dict[str, Any]:
    """The fields of an AutoencoderConfig, from the config.json of diffusers or from ours."""
    path = folder / CONFIG
    try:
        given = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{path} is missing: it says what network {WEIGHTS} belongs to. Copy it, too."
        ) from error
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}); copy the folder again.") from error
    given = {name: tuple(v) if isinstance(v, list) else v for name, v in given.items()}
    refuse_unsupported(path, given)
    config = {name: given.get(name, default) for name, default in DIFFUSERS_DEFAULTS.items()}
    if isinstance(config["sample_size"], tuple):  # a note only; diffusers also allows (h, w)
        config["sample_size"] = max(config["sample_size"])
    return config


def refuse_unsupported(path: Path, given: Mapping[str, Any]) -> None:
    """Settings that would give another network, or other latents, than ours."""
    levels = len(given.get("block_out_channels", DIFFUSERS_DEFAULTS["block_out_channels"]))
    supported = {
        "_class_name": ("AutoencoderKL",),
        "act_fn": ("silu", "swish"),
        "down_block_types": ((DOWN_BLOCK,) * levels,),
        "up_block_types": ((UP_BLOCK,) * levels,),
        "latents_mean": (None,),
        "latents_std": (None,),
    }
    for name, choices in supported.items():
        if name in given and given[name] not in choices:
            wanted = " or ".join(map(repr, choices))
            raise ValueError(f"{path}: {name} is {given[name]!r}; only {wanted} is supported.")
    for name, value in given.items():
        if name not in (*DIFFUSERS_DEFAULTS, *supported) and not name.startswith("_"):
            raise ValueError(
                f"{path}: unknown setting {name} = {value!r}, which may make it another network "
                "than the one built here. If it means nothing, remove it from the file."
            )


def read_weights(folder: Path, expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """All weights in the precision of `expected`, whose keys and shapes they must have exactly."""
    path = folder / WEIGHTS
    try:
        weights = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} cannot be read ({error}); copy it again.") from error
    weights = {current_name(key): value for key, value in weights.items()}
    faults = differences(weights, expected)
    if faults:
        raise ValueError(
            f"{path} does not fit its {CONFIG}: {len(faults)} differences, such as "
            + "; ".join(faults[:3])
            + f". The file looks like {apparent_content(weights)}."
        )
    return {key: value.to(expected[key].dtype) for key, value in weights.items()}


def current_name(key: str) -> str:
    head, dot, parameter = key.rpartition(".")
    block, _, layer = head.rpartition(".")
    if ".attentions." in key and layer in OLD_NAMES:
        return f"{block}.{OLD_NAMES[layer]}{dot}{parameter}"
    return key


def differences(given: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> list[str]:
    """One line for each key that is missing, unexpected, or of another shape."""
    faults = [f"missing {key}" for key in expected if key not in given]
    faults += [f"unexpected {key}" for key in given if key not in expected]
    for key in expected.keys() & given.keys():
        shapes = tuple(given[key].shape), tuple(expected[key].shape)
        if shapes[0] != shapes[1]:
            faults.append(f"{key} is {shapes[0]}, not {shapes[1]}")
    return faults


def apparent_content(keys: Mapping[str, Tensor]) -> str:
    """What a weights file is, judged by the names in it; for error messages."""
    signs = {
        "first_stage_model.": "a single-file Stable Diffusion checkpoint; export.py converts it",
        "encoder.down.": "an autoencoder in the original (CompVis) layout; export.py converts it",
        "lora": "a LoRA, which holds changes to a model and no model",
        "quantize.": "a VQ autoencoder, which has a codebook; only KL autoencoders are supported",
        "time_embed": "a U-Net",
        "text_model.": "a text encoder",
        "encoder.down_blocks.": "an AutoencoderKL with other settings than its config.json says",
    }
    for sign, content in signs.items():
        if any(sign in key for key in keys):
            return content
    return "no model that is known here"


def write_folder(folder: Path, config: Any, weights: Mapping[str, Tensor], provenance: dict):
    """Writes the three files. All are complete beside their places before the first takes its
    place, so a full disk or a crash while writing leaves what was there before."""
    written = describe(config)
    header = {"format": "pt", "config": json.dumps(written), "provenance": json.dumps(provenance)}
    tensors = {key: value.detach().cpu().contiguous() for key, value in weights.items()}
    existed = folder.is_dir()
    folder.mkdir(parents=True, exist_ok=True)
    partial = {name: folder / f".{name}.partial" for name in (WEIGHTS, CONFIG, PROVENANCE)}
    try:
        save_file(tensors, partial[WEIGHTS], metadata=header)
        partial[CONFIG].write_text(json.dumps(written, indent=2) + "\n")
        partial[PROVENANCE].write_text(json.dumps(provenance, indent=2) + "\n")
        for name, path in partial.items():
            os.replace(path, folder / name)
    finally:
        for path in partial.values():
            path.unlink(missing_ok=True)
        if not existed and not any(folder.iterdir()):
            folder.rmdir()


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


def read_provenance(folder: str | Path) -> dict[str, Any]:
    """latentsmith.json; empty for a folder that was not written here."""
    path = find_model_folder(Path(folder)) / PROVENANCE
    return json.loads(path.read_text()) if path.is_file() else {}


def weights_sha256(folder: str | Path) -> str:
    """sha256 of the names, types, shapes and bytes of the weights, in hexadecimal.

    Of the tensors and not of the file, because the same weights with other provenance in the
    header, or copied into a pipeline folder, are the same autoencoder.
    """
    digest = hashlib.sha256()
    path = find_model_folder(Path(folder)) / WEIGHTS
    with safe_open(path, framework="pt") as file:
        for key in sorted(file.keys()):
            tensor = file.get_tensor(key)
            digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
