"""One file with a whole Stable Diffusion model in it, or with a part of one, under CompVis' names.

    model.diffusion_model.   U-Net                 cond_stage_model.    text encoder
    first_stage_model.       autoencoder           model_ema.           U-Net, averaged in training

What is written here says the whole config of every part in the header, so that reading it is
exact. Of other files the config is inferred from the shapes, where these are of a known family.
A bare U-Net or autoencoder, without the prefix, is read as well.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from foundation.errors import UserError
from interop.key_mapping import Shape, inverted
from interop.safetensors_io import read_header, read_tensors
from interop.single_file import compvis_autoencoder, compvis_text, compvis_unet
from interop.single_file.part import Part
from interop.state_dict_check import seems_to_be

HEADER = "latentsmith_model"  # the entry of the metadata that holds the configs, as JSON
PREDICTION = "modelspec.prediction_type"  # and a known one of other tools
PREDICTIONS = {"epsilon": "epsilon", "v": "v_prediction"}  # there -> in diffusers
UNET, EMA, AUTOENCODER = "model.diffusion_model.", "model_ema.", "first_stage_model."
HARMLESS = (  # what no sampling needs: averages, losses, tables of the noise schedule, counters
    *(UNET, EMA, AUTOENCODER, "cond_stage_model.", "loss.", "low_scale_model."),
    *("alphas_cumprod", "betas", "global_step", "log_one_minus_alphas_cumprod", "logvar"),
    *("lvlb_weights", "posterior_", "scale_factor", "sqrt_"),
)
SAMPLE_SIZES = {"epsilon": 64, "v_prediction": 96}  # of Stable Diffusion 2.x, by what it predicts


@dataclass(frozen=True)
class SingleFile:
    path: Path
    shapes: dict[str, Shape]
    header: dict[str, Any]  # part -> config, and facts besides; empty unless written here
    prediction: str | None  # what another tool's header says about it

    def holds(self, prefix: str) -> bool:
        return any(name.startswith(prefix) for name in self.shapes)

    def prefix(self, usual: str) -> str:
        """Of a part's names; none in a file of nothing else."""
        return usual if self.holds(usual) else ""

    def beneath(self, usual: str) -> dict[str, str]:
        """Name -> name without the prefix; all names where there is no such prefix."""
        prefix = self.prefix(usual)
        return {n: n.removeprefix(prefix) for n in self.shapes if n.startswith(prefix)}

    def error(self, reason: str) -> ValueError:
        return ValueError(f"{self.path}: {reason}. It seems to be {seems_to_be(self.shapes)}.")

    def lacks(self, part: str) -> ValueError:
        reason = f"there is no {part} under CompVis' names in it"
        of_a_folder = "_blocks.0.resnets.", "_model.encoder.layers."
        if any(sign in name for name in self.shapes for sign in of_a_folder):
            reason += f". It has the names of diffusers, which go with a folder: {self.path.parent}"
        return self.error(reason)

    def tensors(self, names: Mapping[str, str]) -> dict[str, Tensor]:
        """names: in the file -> wanted."""
        found = read_tensors(self.path, names.__contains__)
        return {names[name]: value for name, value in found.items()}


def open_file(path: Path) -> SingleFile:
    shapes, metadata = read_header(path)
    try:
        header = json.loads(metadata.get(HEADER, "{}"))
    except ValueError as error:
        raise UserError(f"{path}: {HEADER} in its header is no JSON ({error}).") from None
    prediction = metadata.get(PREDICTION)
    if prediction is not None and prediction not in PREDICTIONS:
        raise UserError(
            f"{path}: {PREDICTION} in its header is {prediction!r}; known are "
            f"{' and '.join(PREDICTIONS)}."
        )
    return SingleFile(path, shapes, header, prediction and PREDICTIONS[prediction])


def config_of(file: SingleFile, part: str) -> dict[str, Any]:
    """What config.json would say of a part of the file, by its name in PARTS."""
    names_of, infer = PARTS[part]
    names = names_of(file)
    if told := file.header.get(part):
        return told
    try:
        return infer(file, names)
    except ValueError as reason:
        raise file.error(
            f"its {part} cannot be built: {reason}. Give a diffusers folder, whose config.json "
            "says what the network is"
        ) from None


def read_unet(path: Path, ema: bool = False) -> Part:
    """ema: the weights averaged in training, which must then be in the file."""
    file = open_file(path)
    names = unet_names(file)
    if ema:
        names = averaged(file, names)
    return Part(
        source=path,
        what="the U-Net" + " (EMA)" * ema,
        config=config_of(file, "unet"),
        weights=compvis_unet.from_compvis(file.tensors(names)),
        stored=compvis_unet.from_compvis(inverted(names)),
        prefix=file.prefix(UNET),
        bare=compvis_unet.to_compvis,
        around=file.shapes,
    )


def unet_names(file: SingleFile) -> dict[str, str]:
    names = file.beneath(UNET)
    if "input_blocks.0.0.weight" not in names.values():
        raise file.lacks("U-Net")
    if unknown := [n for n in file.shapes if n not in names and not n.startswith(HARMLESS)]:
        raise file.error(
            f"there are {len(unknown)} tensors in it whose meaning is not known, such as "
            f"{', '.join(sorted(unknown)[:3])}; without them it may be another model"
        )
    return names


def infer_unet(file: SingleFile, names: Mapping[str, str]) -> dict[str, Any]:
    shapes = {bare: file.shapes[name] for name, bare in names.items()}
    return compvis_unet.infer_config(compvis_unet.from_compvis(shapes))


def averaged(file: SingleFile, names: Mapping[str, str]) -> dict[str, str]:
    """The same by the names of the averaged weights, in which all dots are left out."""
    found = {
        EMA + name.removeprefix("model.").replace(".", ""): bare for name, bare in names.items()
    }
    missing = [name for name in found if name not in file.shapes]
    if len(missing) == len(found):
        raise file.error(f"there are no averaged weights ({EMA}*) in it; leave ema out")
    if missing:
        raise file.error(f"{len(missing)} of the averaged weights are missing, first {missing[0]}")
    return found


def read_autoencoder(path: Path) -> Part:
    file = open_file(path)
    names = autoencoder_names(file)
    return Part(
        source=path,
        what="the autoencoder",
        config=config_of(file, "vae"),
        weights=compvis_autoencoder.from_compvis(file.tensors(names)),
        stored=compvis_autoencoder.diffusers_names(inverted(names)),
        prefix=file.prefix(AUTOENCODER),
        bare=compvis_autoencoder.compvis_names,
        around=file.shapes,
    )


def autoencoder_names(file: SingleFile) -> dict[str, str]:
    """In a checkpoint of its training, what the loss and the averaging need lies beside it."""
    names = file.beneath(AUTOENCODER)
    if "encoder.down.0.block.0.conv1.weight" not in names.values():
        raise file.lacks("autoencoder")
    return {name: bare for name, bare in names.items() if not bare.startswith(HARMLESS)}


def infer_autoencoder(file: SingleFile, names: Mapping[str, str]) -> dict[str, Any]:
    shapes = {bare: file.shapes[name] for name, bare in names.items()}
    config = compvis_autoencoder.infer_config(compvis_autoencoder.diffusers_names(shapes))
    return config | latent_scale(file, config)


def latent_scale(file: SingleFile, config: Mapping[str, Any]) -> dict[str, Any]:
    """Told by what else is in the file. A bare autoencoder of Stable Diffusion XL cannot be known
    from one of Stable Diffusion 1.x, which is assumed."""
    if "scale_factor" in file.shapes:  # measured in training (`scale_by_std` of CompVis)
        measured = file.tensors({"scale_factor": "scale_factor"})["scale_factor"]
        digits = f"{measured.item():.7g}"  # float32 has no more
        return {"scaling_factor": float(digits), "shift_factor": None}
    if file.holds("conditioner."):
        return compvis_autoencoder.STABLE_DIFFUSION_XL
    if any("joint_blocks." in name for name in file.shapes):
        return compvis_autoencoder.STABLE_DIFFUSION_3
    if UNET + "label_emb.weight" in file.shapes:
        return compvis_autoencoder.UPSCALER
    if config["latent_channels"] == 4 and config["use_quant_conv"]:
        return compvis_autoencoder.STABLE_DIFFUSION
    raise UserError(
        f"the scale of its latents of {config['latent_channels']} channels shows in no shape; "
        "those of Stable Diffusion 3 and of FLUX look alike and differ in it"
    )


def read_text_encoder(path: Path) -> Part:
    """Weights under Hugging Face's names (`text_model.`) or open_clip's, as they are stored.

    config: besides the entries of config.json, those of tokenizer_config.json under "tokenizer".
    """
    file = open_file(path)
    names, prefix = text_names(file), compvis_text.prefix_of(file.shapes)
    config, weights = config_of(file, "text_encoder"), file.tensors(names)
    if prefix == compvis_text.OPEN_CLIP:
        weights = compvis_text.used_layers(weights, config["num_hidden_layers"])
    return Part(
        source=path,
        what="the text encoder",
        config=config,
        weights=weights,
        stored=inverted(names),
        prefix=prefix,
        bare=dict,
        around=file.shapes,
    )


def text_names(file: SingleFile) -> dict[str, str]:
    prefix = compvis_text.prefix_of(file.shapes)
    if prefix is None:
        raise file.lacks("text encoder of Stable Diffusion 1.x or 2.x")
    return compvis_text.tower_names(file.shapes, prefix)


def infer_text_encoder(file: SingleFile, names: Mapping[str, str]) -> dict[str, Any]:
    shapes = {ours: file.shapes[name] for name, ours in names.items()}
    return compvis_text.infer_config(shapes, compvis_text.prefix_of(file.shapes))


PARTS = {  # which names it has in a file, and its config where the header does not say it
    "unet": (unet_names, infer_unet),
    "vae": (autoencoder_names, infer_autoencoder),
    "text_encoder": (text_names, infer_text_encoder),
}


def read_provenance(path: Path, part: str = "unet") -> dict[str, Any]:
    """What whoever wrote the file recorded of the model, or of the "autoencoder" or "text_encoder"
    in it; empty for a foreign file."""
    header = open_file(path).header
    told = header.get("provenance", {})
    whole = "unet" in header
    return told.get(part, {}) if whole and part != "unet" else told


def to_single_file(
    parts: Mapping[str, tuple[dict[str, Any], Mapping[str, Tensor]]], facts: Mapping[str, Any]
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a file, for `interop.safetensors_io.write_tensors`.

    Args:
        parts: config and weights of "unet" and "vae", by diffusers' names, and of "text_encoder",
            by Hugging Face's or open_clip's; all or some of them.
        facts: "provenance" (JSON), and of a whole model its scheduler_config.json as "scheduler".
    """
    tensors: dict[str, Tensor] = {}
    for part, (_, weights) in parts.items():
        if part == "unet":
            tensors |= {UNET + k: v for k, v in compvis_unet.to_compvis(weights).items()}
        elif part == "vae":
            named = compvis_autoencoder.to_compvis(weights)
            tensors |= {AUTOENCODER + k: v for k, v in named.items()}
        else:
            tensors |= compvis_text.to_single_file(weights)
    configs = {part: config for part, (config, _) in parts.items()}
    metadata = {"format": "pt", HEADER: json.dumps({**configs, **facts}, sort_keys=True)}
    predicted = facts.get("scheduler", {}).get("prediction_type")
    names = {theirs: told for told, theirs in PREDICTIONS.items()}
    return tensors, metadata | ({PREDICTION: names[predicted]} if predicted in names else {})
