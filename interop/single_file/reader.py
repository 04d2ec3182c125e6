"""Read the components of a Stable Diffusion model from one file with CompVis' names.

    model.diffusion_model.   U-Net                 cond_stage_model.    text encoder
    first_stage_model.       autoencoder           model_ema.           U-Net, averaged in training

Files written here contain the whole config of every component in their header, so that reading them
is exact. For other files the config is inferred from the shapes, if these are of a known family.
A U-Net or an autoencoder alone, without its prefix, is read as well.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from foundation.errors import UserError, shown
from foundation.json_reading import check_type, load_object
from interop.key_mapping import Shape, invert
from interop.provenance import checked_provenance
from interop.safetensors_io import aligned_copy, read_header, read_tensors
from interop.single_file import compvis_autoencoder, compvis_text, compvis_unet
from interop.state_dict_check import check_state_dict, identify_weights

HEADER = "latentsmith_model"  # the entry of the metadata that contains the configs, as JSON
PREDICTION = "modelspec.prediction_type"  # an entry that other tools write
PREDICTIONS = {"epsilon": "epsilon", "v": "v_prediction"}  # its values -> diffusers' names
UNET, EMA, AUTOENCODER = "model.diffusion_model.", "model_ema.", "first_stage_model."
NOT_SAMPLED = (  # tensors other than the U-Net's that do not change it: other components, averages,
    *(UNET, EMA, AUTOENCODER, "cond_stage_model.", "loss.", "low_scale_model."),  # losses, tables
    *("alphas_cumprod", "betas", "global_step", "log_one_minus_alphas_cumprod", "logvar"),
    *("lvlb_weights", "posterior_", "scale_factor", "sqrt_", "v_pred", "ztsnr"),
)
# Names of empty tensors by which some tools mark what the U-Net predicts and its noise schedule.
VELOCITY, ZERO_TERMINAL_SNR = "v_pred", "ztsnr"
SAMPLE_SIZES = {"epsilon": 64, "v_prediction": 96}  # of Stable Diffusion 2.x, by its prediction


@dataclass(frozen=True)
class SingleFile:
    """The header of a single file."""

    path: Path
    shapes: dict[str, Shape]
    header: dict[str, Any]  # component -> config, and further facts; empty in foreign files
    prediction: str | None  # diffusers' prediction_type, if another tool recorded it

    def has(self, prefix: str) -> bool:
        """Return whether any name starts so."""
        return any(name.startswith(prefix) for name in self.shapes)

    def actual_prefix(self, usual: str) -> str:
        """Return the usual prefix of a component, or "" in a file that contains only it."""
        return usual if self.has(usual) else ""

    def bare_names(self, usual: str) -> dict[str, str]:
        """Return name -> name without the component's prefix, for all tensors of the component."""
        prefix = self.actual_prefix(usual)
        return {n: n.removeprefix(prefix) for n in self.shapes if n.startswith(prefix)}

    def error(self, reason: str) -> UserError:
        """Return the error that names the file, the reason, and what the file seems to be."""
        return UserError(f"{self.path}: {reason}. It seems to be {identify_weights(self.shapes)}.")

    def missing(self, component: str) -> UserError:
        """Return the error for a component that is not in the file."""
        reason = f"there is no {component} with CompVis' names in it"
        diffusers_names = "_blocks.0.resnets.", "_model.encoder.layers."
        prefixes = (UNET, EMA, AUTOENCODER, "cond_stage_model.")
        rest = [name for name in self.shapes if not name.startswith(prefixes)]
        if any(part in name for name in rest for part in diffusers_names):
            reason += (
                ". Its names are those of diffusers, which belong in a folder: give "
                f"{self.path.parent}"
            )
        return self.error(reason)

    def read(self, names: Mapping[str, str]) -> dict[str, Tensor]:
        """Read some tensors; names: name in the file -> name in the result."""
        tensors = read_tensors(self.path, names.__contains__)
        return {names[name]: value for name, value in tensors.items()}


@dataclass(frozen=True, kw_only=True)
class Component:
    """A component of a single file, with the names that it has in a diffusers folder."""

    source: Path
    description: str  # for error messages, such as "the U-Net"
    config: dict[str, Any]  # the content of config.json
    weights: dict[str, Tensor]
    stored_names: Mapping[str, str]  # name in a folder -> name in the file
    prefix: str  # of its names in the file
    compvis_keys: Callable[[Mapping[str, str]], Mapping[str, str]]  # renames keys of a folder
    file_shapes: Mapping[str, Shape]  # of all tensors in the file

    def state_dict_for(self, expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the weights with the dtypes of a network's state dict.

        Raises:
            UserError: names or shapes differ; the message uses the names in the file.
        """
        names = self.compvis_keys({name: name for name in expected})
        file_names = {name: self.prefix + bare for bare, name in names.items()}
        file_names |= self.stored_names
        weights, needed = (
            {file_names.get(name, name): value for name, value in tensors.items()}
            for tensors in (self.weights, expected)
        )
        check_state_dict(weights, needed, self.source, self.description, self.file_shapes)
        # Once more by the names in a folder, in case two of them were mapped to one.
        check_state_dict(self.weights, expected, self.source, self.description)
        return {
            name: aligned_copy(value, expected[name].dtype) for name, value in self.weights.items()
        }


def open_file(path: Path) -> SingleFile:
    """Read the header of a single file."""
    shapes, metadata = read_header(path)
    header = load_object(metadata.get(HEADER, "{}"), f"{path} ({HEADER} in its header)")
    for part in ("provenance", "scheduler", *COMPONENTS):
        if part in header:
            check_type(header[part], dict, f"{path} ({HEADER} in its header)", part)
    prediction = metadata.get(PREDICTION)
    if prediction is not None and prediction not in PREDICTIONS:
        raise UserError(
            f"{path}: {PREDICTION} in its header is {shown(prediction)}; it must be "
            f"{' or '.join(PREDICTIONS)}."
        )
    if VELOCITY in shapes:
        if prediction not in (None, "v"):
            raise UserError(
                f"{path}: {PREDICTION} in its header is {prediction}, and a tensor {VELOCITY} says "
                "v. One of the two is wrong: remove it."
            )
        prediction = "v"
    return SingleFile(path, shapes, header, prediction and PREDICTIONS[prediction])


def component_config(file: SingleFile, component: str) -> dict[str, Any]:
    """Return the content of a component's config.json, from the header or else from the shapes.

    component: a key of COMPONENTS.

    Raises:
        UserError: the component is not in the file, or its shapes do not determine the config.
    """
    select, infer = COMPONENTS[component]
    names = select(file)
    if config := file.header.get(component):
        return config
    try:
        return infer(file, names)
    except UserError as reason:
        raise file.error(
            f"its {component} cannot be built: {reason}. Give a diffusers folder, whose "
            "config.json describes the network"
        ) from None


# U-Net --------------------------------------------------------------------------------------------


def read_unet(path: Path, ema: bool = False) -> Component:
    """Read the U-Net.

    ema: the weights that were averaged in training, which must then be in the file.
    """
    file = open_file(path)
    names = select_unet(file)
    if ema:
        names = averaged_names(file, names)
    return Component(
        source=path,
        description="the U-Net" + " (EMA)" * ema,
        config=component_config(file, "unet"),
        weights=compvis_unet.from_compvis(file.read(names)),
        stored_names=compvis_unet.from_compvis(invert(names)),
        prefix=file.actual_prefix(UNET),
        compvis_keys=compvis_unet.to_compvis,
        file_shapes=file.shapes,
    )


def select_unet(file: SingleFile) -> dict[str, str]:
    """Return the names of the U-Net's tensors, with and without prefix.

    Raises:
        UserError: there is none, or there are tensors whose meaning is unknown.
    """
    names = file.bare_names(UNET)
    if "input_blocks.0.0.weight" not in names.values():
        raise file.missing("U-Net")
    if unknown := [n for n in file.shapes if n not in names and not n.startswith(NOT_SAMPLED)]:
        raise file.error(
            f"there are {len(unknown)} tensors in it whose meaning is unknown, such as "
            f"{', '.join(sorted(unknown)[:3])}; without them it may be another model"
        )
    return names


def infer_unet(file: SingleFile, names: Mapping[str, str]) -> dict[str, Any]:
    """Infer the config of the U-Net from its shapes."""
    shapes = {bare: file.shapes[name] for name, bare in names.items()}
    return compvis_unet.infer_config(compvis_unet.from_compvis(shapes))


def averaged_names(file: SingleFile, names: Mapping[str, str]) -> dict[str, str]:
    """Replace the names of the U-Net's tensors by those of the averaged ones, without dots."""
    averaged = {
        EMA + name.removeprefix("model.").replace(".", ""): bare for name, bare in names.items()
    }
    missing = [name for name in averaged if name not in file.shapes]
    if len(missing) == len(averaged):
        raise file.error(f"there are no averaged weights ({EMA}*) in it; leave ema out")
    if missing:
        raise file.error(f"{len(missing)} of the averaged weights are missing, first {missing[0]}")
    return averaged


# Autoencoder --------------------------------------------------------------------------------------


def read_autoencoder(path: Path) -> Component:
    """Read the autoencoder."""
    file = open_file(path)
    names = select_autoencoder(file)
    return Component(
        source=path,
        description="the autoencoder",
        config=component_config(file, "vae"),
        weights=compvis_autoencoder.from_compvis(file.read(names)),
        stored_names=compvis_autoencoder.diffusers_keys(invert(names)),
        prefix=file.actual_prefix(AUTOENCODER),
        compvis_keys=compvis_autoencoder.compvis_keys,
        file_shapes=file.shapes,
    )


def select_autoencoder(file: SingleFile) -> dict[str, str]:
    """Return the names of the autoencoder's tensors, with and without prefix.

    A checkpoint of its training also contains the loss and averages, which are left out.
    """
    names = file.bare_names(AUTOENCODER)
    if "encoder.down.0.block.0.conv1.weight" not in names.values():
        raise file.missing("autoencoder")
    return {name: bare for name, bare in names.items() if not bare.startswith(NOT_SAMPLED)}


def infer_autoencoder(file: SingleFile, names: Mapping[str, str]) -> dict[str, Any]:
    """Infer the config of the autoencoder from its shapes and from what else is in the file."""
    shapes = {bare: file.shapes[name] for name, bare in names.items()}
    config = compvis_autoencoder.infer_config(compvis_autoencoder.diffusers_keys(shapes))
    return config | latent_scale(file, config)


def latent_scale(file: SingleFile, config: Mapping[str, Any]) -> dict[str, Any]:
    """Infer the scale of the latents from what else is in the file.

    An autoencoder of Stable Diffusion XL alone looks like one of Stable Diffusion 1.x, which is
    assumed.
    """
    if "scale_factor" in file.shapes:  # measured in training (`scale_by_std` of CompVis)
        measured = file.read({"scale_factor": "scale_factor"})["scale_factor"]
        digits = f"{measured.item():.7g}"  # float32 has no more
        return {"scaling_factor": float(digits), "shift_factor": None}
    if file.has("conditioner."):
        return compvis_autoencoder.STABLE_DIFFUSION_XL
    if any("joint_blocks." in name for name in file.shapes):
        return compvis_autoencoder.STABLE_DIFFUSION_3
    if UNET + "label_emb.weight" in file.shapes:
        return compvis_autoencoder.UPSCALER
    if config["latent_channels"] == 4 and config["use_quant_conv"]:
        return compvis_autoencoder.STABLE_DIFFUSION
    raise UserError(
        f"the scale of its latents of {config['latent_channels']} channels shows in no shape; "
        "those of Stable Diffusion 3 and of FLUX have the same shapes and different scales"
    )


# Text encoder -------------------------------------------------------------------------------------


def read_text_encoder(path: Path) -> Component:
    """Read the text encoder, with Hugging Face's keys ("text_model.") or open_clip's, as stored.

    Its config has the entries of config.json, and under "tokenizer" those of tokenizer_config.json.
    """
    file = open_file(path)
    names, prefix = select_text_encoder(file), text_prefix(file)
    config, weights = component_config(file, "text_encoder"), file.read(names)
    if prefix == compvis_text.OPEN_CLIP:
        weights = compvis_text.first_layers(weights, config["num_hidden_layers"])
    return Component(
        source=path,
        description="the text encoder",
        config=config,
        weights=weights,
        stored_names=invert(names),
        prefix=prefix,
        compvis_keys=dict,
        file_shapes=file.shapes,
    )


def text_prefix(file: SingleFile) -> str:
    """Return the prefix of the text encoder's names."""
    prefix = compvis_text.find_prefix(file.shapes)
    if prefix is None:
        raise file.missing("text encoder of Stable Diffusion 1.x or 2.x")
    return prefix


def select_text_encoder(file: SingleFile) -> dict[str, str]:
    """Return name in the file -> key in the text tower, for the text encoder's tensors."""
    return compvis_text.tower_keys(file.shapes, text_prefix(file))


def infer_text_encoder(file: SingleFile, names: Mapping[str, str]) -> dict[str, Any]:
    """Infer the config of the text encoder from its shapes."""
    shapes = {key: file.shapes[name] for name, key in names.items()}
    return compvis_text.infer_config(shapes, text_prefix(file))


Select = Callable[[SingleFile], dict[str, str]]
Infer = Callable[[SingleFile, Mapping[str, str]], dict[str, Any]]
# Which tensors belong to a component, and its config where the header does not contain it.
COMPONENTS: dict[str, tuple[Select, Infer]] = {
    "unet": (select_unet, infer_unet),
    "vae": (select_autoencoder, infer_autoencoder),
    "text_encoder": (select_text_encoder, infer_text_encoder),
}


def read_provenance(path: Path, component: str = "unet") -> dict[str, Any]:
    """Read what was recorded about a model or a component when the file was written.

    component: "unet" (the whole model), or "autoencoder" or "text_encoder" of a whole model.

    Returns:
        Free JSON; empty for a foreign file.
    """
    header = open_file(path).header
    provenance = checked_provenance(header.get("provenance", {}), path)
    is_whole_model = "unet" in header
    return provenance.get(component, {}) if is_whole_model and component != "unet" else provenance
