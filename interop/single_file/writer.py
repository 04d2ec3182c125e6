"""Write a single file, and list the settings of a file that only its header contains."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from foundation.errors import UserError
from interop.provenance import without_paths
from interop.single_file import compvis_autoencoder, compvis_text, compvis_unet
from interop.single_file.noise import BETAS
from interop.single_file.reader import (
    AUTOENCODER,
    COMPONENTS,
    HEADER,
    PREDICTION,
    PREDICTIONS,
    UNET,
    SingleFile,
    open_file,
)

# Settings that change no number, or that another line reports.
NOT_REPORTED = ("sample_size", "force_upcast", "upcast_attention", "projection_dim", "tokenizer")


def to_single_file(
    components: Mapping[str, tuple[dict[str, Any], Mapping[str, Tensor]]], facts: Mapping[str, Any]
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors and the metadata of a file, for `interop.safetensors_io.write_tensors`.

    Args:
        components: config and weights of "unet", "vae" and "text_encoder", or some of them. The
            keys of the text encoder are Hugging Face's or open_clip's, the others' diffusers'.
        facts: further entries of the header: "provenance" (JSON), and for a whole model its
            scheduler_config.json as "scheduler".
    """
    tensors: dict[str, Tensor] = {}
    for component, (_, weights) in components.items():
        if component == "unet":
            tensors |= {UNET + k: v for k, v in compvis_unet.to_compvis(weights).items()}
        elif component == "vae":
            renamed = compvis_autoencoder.to_compvis(weights)
            tensors |= {AUTOENCODER + k: v for k, v in renamed.items()}
        else:
            tensors |= compvis_text.to_single_file(weights)
    facts = without_paths(facts)
    configs = {component: config for component, (config, _) in components.items()}
    metadata = {"format": "pt", HEADER: json.dumps({**configs, **facts}, sort_keys=True)}
    prediction = facts.get("scheduler", {}).get("prediction_type")
    names = {in_diffusers: name for name, in_diffusers in PREDICTIONS.items()}
    if prediction in names:
        metadata[PREDICTION] = names[prediction]
    return tensors, metadata


def header_only_settings(path: Path) -> list[str]:
    """Describe, one line each, the settings that a tool which ignores our header gets wrong."""
    file = open_file(path)
    lines = [
        line
        for component in COMPONENTS
        if component in file.header
        for line in config_differences(file, component)
    ]
    return lines + padding_difference(file) + noise_differences(file.header.get("scheduler", {}))


def config_differences(file: SingleFile, component: str) -> list[str]:
    """Compare the config in the header with the one that names and shapes imply."""
    config, (select, infer) = file.header[component], COMPONENTS[component]
    try:
        inferred = infer(file, select(file))
    except UserError as reason:
        return [f"{component}: {reason}"]
    return [
        f"{component}: {name} is {config.get(name)}, and other tools would assume {value}"
        for name, value in inferred.items()
        if name not in NOT_REPORTED and not is_same_setting(config.get(name), value)
    ]


def is_same_setting(one: object, other: object) -> bool:
    """Return whether two values of a setting mean the same.

    Lists equal tuples, and one value for all levels equals a list that repeats it.
    """
    a, b = (list(x) if isinstance(x, list | tuple) else x for x in (one, other))
    if isinstance(a, list) and not isinstance(b, list):
        return all(x == b for x in a)
    if isinstance(b, list) and not isinstance(a, list):
        return all(x == a for x in b)
    return a == b


def padding_difference(file: SingleFile) -> list[str]:
    """Report a token for padding that is not the usual one of the text encoder's family."""
    prefix = compvis_text.find_prefix(file.shapes)
    if "text_encoder" not in file.header or prefix is None:
        return []
    usual = compvis_text.PAD_TOKENS[prefix]
    pad = file.header["text_encoder"]["tokenizer"]["pad_token"]
    if pad == usual:
        return []
    return [f"text_encoder: short prompts are padded with {pad}, not {usual}"]


def noise_differences(scheduler: Mapping[str, Any]) -> list[str]:
    """Report what differs from the noise schedule and the prediction of Stable Diffusion 1.x."""
    if not scheduler:
        return []
    if scheduler.get("use_flow_sigmas"):
        return ["noise: the model is a rectified flow, which no name or shape shows"]
    lines: list[str] = []
    schedule = scheduler.get("beta_schedule")
    betas = scheduler.get("beta_start"), scheduler.get("beta_end")
    if (schedule, betas) != ("scaled_linear", BETAS):
        lines.append(f"noise: the schedule is {schedule}, beta {betas}")
    if scheduler.get("rescale_betas_zero_snr"):
        lines.append("noise: the schedule has zero terminal SNR")
    if scheduler.get("prediction_type") != "epsilon":
        lines.append(f"noise: the U-Net predicts {scheduler.get('prediction_type')}, not epsilon")
    return lines
