"""LoRA files: low-rank updates of weight matrices, W + scale * up @ down.

Hu et al. 2021 (arXiv:2106.09685). Files of diffusers, peft and kohya's scripts are read:

    unet.MODULE.lora_A.weight, .lora_B.weight              down and up, as peft names them
    unet.MODULE.lora.down.weight, .lora.up.weight          the same, as diffusers names them
    text_encoder.MODULE.lora_linear_layer.down.weight ...
    lora_unet_MODULE.lora_down.weight, .lora_up.weight     kohya, with _ instead of every dot
    lora_te_MODULE...
    unet.ATTENTION.processor.to_q_lora.down.weight ...     diffusers until 2023
    base_model.model.MODULE.lora_A.weight ...              peft alone; alpha in adapter_config.json
    MODULE.alpha                                           the update is scaled by alpha / rank

MODULE is the name of the module in diffusers or transformers. Files are written with the names of
peft, which `StableDiffusionPipeline.load_lora_weights` opens, and with alpha / rank multiplied into
`up`, so that no reader has to know a scale.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from foundation.errors import MissingFileError, UserError, one_line, shown
from foundation.files import read_json, restore
from foundation.json_reading import check_type, load_object
from foundation.run_kind import run_hint
from interop.provenance import without_paths
from interop.safetensors_io import read_header, read_tensors, write_weights_folder

WEIGHTS = "pytorch_lora_weights.safetensors"
PEFT_WEIGHTS, PEFT_CONFIG = "adapter_model.safetensors", "adapter_config.json"
PROVENANCE = "latentsmith.json"
DIFFUSERS_METADATA = "lora_adapter_metadata"  # an entry of the header that newer versions write
COMPONENTS = {  # start of a key -> component of the pipeline
    "unet.": "unet",
    "text_encoder.": "text_encoder",
    "lora_unet_": "unet",
    "lora_te_": "text_encoder",
    "lora_te1_": "text_encoder",
    "base_model.model.text_model.": "text_encoder",
    "base_model.model.": "unet",
}
PEFT = "base_model.model."
OLD_PROJECTION = re.compile(r"(?:\.processor)?\.to_(q|k|v|out)_lora$")  # in front of .down.weight
OLD_MODULES = {  # component -> module that a projection of 2023 stands for
    "unet": {"q": "to_q", "k": "to_k", "v": "to_v", "out": "to_out.0"},
    "text_encoder": {"q": "q_proj", "k": "k_proj", "v": "v_proj", "out": "out_proj"},
}
ROLES = {  # end of a key -> what the tensor is
    ".lora_A.weight": "down",
    ".lora_B.weight": "up",
    ".lora.down.weight": "down",
    ".lora.up.weight": "up",
    ".lora_linear_layer.down.weight": "down",
    ".lora_linear_layer.up.weight": "up",
    ".lora_down.weight": "down",
    ".lora_up.weight": "up",
    "_lora.down.weight": "down",
    "_lora.up.weight": "up",
    ".alpha": "alpha",
}


@dataclass(frozen=True)
class LowRankUpdate:
    """The update of one matrix, or of the weight of a convolution, flattened to a matrix."""

    down: Float[Tensor, "rank ..."]
    up: Float[Tensor, "out rank ..."]
    alpha: float | None = None  # None: the rank

    @property
    def scale(self) -> float:
        """alpha / rank."""
        return 1 if self.alpha is None else self.alpha / len(self.down)

    def delta(self) -> Float[Tensor, "out in"]:
        """Compute the matrix that is added to the weight."""
        return self.scale * (self.up.float().flatten(1) @ self.down.float().flatten(1))


LoraUpdates = dict[str, LowRankUpdate]  # by module name


def find_lora(source: Path) -> Path:
    """Return the LoRA file of a run folder of train_ldm.py, of a folder, or `source` itself.

    Raises:
        MissingFileError: there is none.
    """
    if source.is_file():
        return source
    for folder in (source / "model", source):
        restore(folder)
        for name in (WEIGHTS, PEFT_WEIGHTS):
            if (folder / name).is_file():
                return folder / name
    raise MissingFileError(
        f"there is no LoRA in {source}: looked for {WEIGHTS} there and in {source / 'model'}."
        f"{run_hint(source, 'train_ldm.py', 'lora')} Give the folder of a run that trained a LoRA, "
        "a folder with that file, or a .safetensors file."
    )


def read_lora(source: Path) -> dict[str, LoraUpdates]:
    """Read a LoRA: component ("unet", "text_encoder") -> its updates.

    Modules keep the names that they have in the file.

    Raises:
        UserError: it is not a LoRA, or one that is more than a product of two matrices.
    """
    file = find_lora(source)
    components: dict[str, dict[str, dict[str, Tensor]]] = {}
    unknown: list[str] = []
    tensors = read_tensors(file)
    for key, tensor in tensors.items():
        parsed = parse_key(key)
        if parsed is None:
            unknown.append(key)
        else:
            component, module, role = parsed
            components.setdefault(component, {}).setdefault(module, {})[role] = tensor
    incomplete = [
        module
        for modules in components.values()
        for module, tensors in modules.items()
        if not is_complete(tensors)
    ]
    if unknown or incomplete or not components:
        reason = (
            f"it has {one_line((unknown or incomplete)[0], 200)}"
            if unknown or incomplete
            else "it is empty"
        )
        raise UserError(
            f"{file} is not a LoRA that is supported: {reason}. Supported are those of diffusers, "
            "peft and kohya's scripts for the U-Net and the text encoder of Stable Diffusion 1.x "
            "and 2.x, without the extras of DoRA and LyCORIS."
        )
    is_peft = any(key.startswith(PEFT) for key in tensors)
    alphas = read_peft_alphas(file) if is_peft else read_alphas(file)
    return {
        component: {
            module: LowRankUpdate(
                tensors["down"],
                tensors["up"],
                read_alpha(file, module, tensors["alpha"])
                if "alpha" in tensors
                else alphas.get(component),
            )
            for module, tensors in modules.items()
        }
        for component, modules in components.items()
    }


def parse_key(key: str) -> tuple[str, str, str] | None:
    """Split a key into component, module and role; return None if it has another form."""
    prefix = next((prefix for prefix in COMPONENTS if key.startswith(prefix)), None)
    ending = next((ending for ending in ROLES if key.endswith(ending)), None)
    if prefix is None or ending is None:
        return None
    component, module = COMPONENTS[prefix], key.removeprefix(prefix).removesuffix(ending)
    if prefix.startswith(PEFT):
        module = key.removeprefix(PEFT).removesuffix(ending)
    if ending.startswith("_lora."):
        old = OLD_PROJECTION.search(f"{module}_lora")
        if old is None:
            return None
        module = f"{f'{module}_lora'[: old.start()]}.{OLD_MODULES[component][old[1]]}"
    return component, module, ROLES[ending]


def is_complete(tensors: Mapping[str, Tensor]) -> bool:
    """Return whether a module has both matrices, with the same rank."""
    if not {"down", "up"} <= tensors.keys():
        return False
    down, up = tensors["down"], tensors["up"]
    return down.ndim > 1 and up.ndim > 1 and len(down) == up.shape[1] > 0


def read_alpha(file: Path, module: str, alpha: Tensor) -> float:
    """Return the number in a tensor "alpha"."""
    if alpha.numel() != 1 or not alpha.isfinite().all():
        raise UserError(
            f"{file}: the alpha of {one_line(module, 200)} must be one finite number; its shape is "
            f"{tuple(alpha.shape)}."
        )
    return float(alpha)


def read_peft_alphas(file: Path) -> dict[str, float]:
    """Read component -> alpha from the adapter_config.json next to weights that peft wrote."""
    config = file.parent / PEFT_CONFIG
    content = read_json(config)
    refuse_extras(content, file)
    alpha = check_type(content.get("lora_alpha"), float, config, "lora_alpha")
    return {"unet": alpha, "text_encoder": alpha}


def refuse_extras(settings: Mapping[str, Any], file: Path) -> None:
    """Refuse a LoRA that is scaled in another way than by one alpha."""
    extras = ("use_dora", "use_rslora", "alpha_pattern")
    for key, value in settings.items():
        if key.rpartition(".")[2] in extras and value:
            raise UserError(
                f"{file} is a LoRA with {one_line(key, 200)} = {shown(value)}, which is not "
                "supported."
            )


def read_alphas(file: Path) -> dict[str, float]:
    """Read component -> alpha, which newer versions of diffusers store once for all modules."""
    text = read_header(file)[1].get(DIFFUSERS_METADATA, "{}")
    metadata = load_object(text, f"{file} ({DIFFUSERS_METADATA} in its header)")
    refuse_extras(metadata, file)
    ending = ".lora_alpha"
    return {
        key.removesuffix(ending): check_type(value, float, file, key)
        for key, value in metadata.items()
        if key.endswith(ending)
    }


@torch.no_grad()
def add_lora(
    weights: Mapping[str, Tensor],
    updates: LoraUpdates,
    scale: float,
    source: Path,
    description: str,
) -> None:
    """Add `scale` times the updates to the weights of a network, in place.

    Args:
        source: the file of the LoRA, for the message.
        description: what the network is, for the message.

    Raises:
        UserError: an update has no matrix of its shape in the network; then nothing is changed.
    """
    modules = {name.removesuffix(".weight"): name for name in weights if name.endswith(".weight")}
    modules |= {module.replace(".", "_"): name for module, name in modules.items()}  # kohya
    for module, update in updates.items():
        weight = weights.get(modules.get(module, ""))
        shape = (len(update.up), update.down[0].numel())
        if weight is None or (len(weight), weight[0].numel()) != shape:
            reason = "there is none" if weight is None else f"that is {tuple(weight.shape)} here"
            raise UserError(
                f"{source} does not fit {description}: it changes a matrix of {shape} in "
                f"{one_line(module, 200)}, "
                f"and {reason}. A LoRA fits models of the architecture that it was trained on."
            )
    for module, update in updates.items():
        weight = weights[modules[module]]
        change = scale * update.delta().to(weight.device)
        weight.copy_((weight.float() + change.view_as(weight)).to(weight.dtype))


def write_lora(
    folder: Path, components: Mapping[str, LoraUpdates], provenance: Mapping[str, Any], card: str
) -> None:
    """Write a folder with the weights, the provenance (JSON) and the model card, atomically."""
    tensors: dict[str, Tensor] = {}
    for component, updates in components.items():
        for module, update in updates.items():
            tensors[f"{component}.{module}.lora_A.weight"] = update.down
            tensors[f"{component}.{module}.lora_B.weight"] = update.up * update.scale
    provenance = without_paths(provenance)
    header = {"format": "pt", "latentsmith": json.dumps(provenance)}
    texts = {PROVENANCE: json.dumps({"provenance": provenance}, indent=2) + "\n", "README.md": card}
    write_weights_folder(folder, WEIGHTS, tensors, header, texts)
