"""LoRA: changes of low rank, W + scale up down, to the matrices of a network that stays as it is.

Hu et al. 2021 (arXiv:2106.09685). Read are the files of diffusers, peft and kohya's scripts:

    unet.MODULE.lora_A.weight, .lora_B.weight              down and up, as peft names them
    unet.MODULE.lora.down.weight, .lora.up.weight          the same, as diffusers writes them
    text_encoder.MODULE.lora_linear_layer.down.weight ...
    lora_unet_MODULE.lora_down.weight, .lora_up.weight     kohya, with _ for every dot
    lora_te_MODULE...
    MODULE.alpha                                           the change counts alpha / rank times

MODULE has the name that diffusers and transformers give it. Written is the first of these, where
`StableDiffusionPipeline.load_lora_weights` finds it, and with alpha / rank multiplied into `up`:
then there is no scale that anyone could forget.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from foundation.errors import MissingFileError, UserError
from interop.safetensors_io import read_header, read_tensors, write_files

WEIGHTS = "pytorch_lora_weights.safetensors"
PROVENANCE = "latentsmith.json"
METADATA = "lora_adapter_metadata"  # diffusers' own, in the header
PARTS = {  # prefix -> part of the pipeline
    "unet.": "unet",
    "text_encoder.": "text_encoder",
    "lora_unet_": "unet",
    "lora_te_": "text_encoder",
    "lora_te1_": "text_encoder",
}
ENDINGS = {
    ".lora_A.weight": "down",
    ".lora_B.weight": "up",
    ".lora.down.weight": "down",
    ".lora.up.weight": "up",
    ".lora_linear_layer.down.weight": "down",
    ".lora_linear_layer.up.weight": "up",
    ".lora_down.weight": "down",
    ".lora_up.weight": "up",
    ".alpha": "alpha",
}


@dataclass(frozen=True)
class LowRank:
    """A change of one matrix, or of a convolution's weight as a matrix."""

    down: Float[Tensor, "rank ..."]
    up: Float[Tensor, "_ rank ..."]
    alpha: float | None = None  # None: the rank

    def change(self) -> Float[Tensor, "_ _"]:
        """What is added to the weight, its last axes flattened."""
        rank = len(self.down)
        scale = 1 if self.alpha is None else self.alpha / rank
        return scale * (self.up.float().flatten(1) @ self.down.float().flatten(1))


Changes = dict[str, LowRank]  # by module


def find_lora(source: Path) -> Path:
    """The file in a run folder of train_ldm.py --lora, in a folder, or the file itself."""
    if source.is_file():
        return source
    for folder in (source / "model", source):
        if (folder / WEIGHTS).is_file():
            return folder / WEIGHTS
    raise MissingFileError(
        f"there is no LoRA in {source}: looked for {WEIGHTS} there and in {source / 'model'}. Give "
        "a run folder of train_ldm.py --lora, a folder with that file, or a .safetensors file."
    )


def read_lora(source: Path) -> dict[str, Changes]:
    """Part ("unet", "text_encoder") -> its changes. Modules keep the names they have in the file.

    Raises:
        ValueError: it is none, or of a kind that more than adds a product of two matrices.
    """
    file = find_lora(source)
    found: dict[str, dict[str, dict[str, Tensor]]] = {}
    unknown = []
    for key, tensor in read_tensors(file).items():
        part, module, role = parsed(key)
        if role is None:
            unknown.append(key)
        else:
            found.setdefault(part, {}).setdefault(module, {})[role] = tensor
    halves = [name for part in found.values() for name, pair in part.items() if half(pair)]
    if unknown or halves or not found:
        told = f"it has {(unknown or halves)[0]}" if unknown or halves else "it is empty"
        raise UserError(
            f"{file} is no LoRA that is known here: {told}. Known are those of diffusers, peft and "
            "kohya's scripts, for U-Net and text encoder of Stable Diffusion 1.x and 2.x, without "
            "the extras of DoRA and LyCORIS."
        )
    alphas = recorded_alphas(file)
    return {
        part: {
            name: LowRank(
                pair["down"],
                pair["up"],
                float(pair["alpha"]) if "alpha" in pair else alphas.get(part),
            )
            for name, pair in modules.items()
        }
        for part, modules in found.items()
    }


def parsed(key: str) -> tuple[str | None, str, str | None]:
    """Part, module and role of a tensor; role None: unknown."""
    prefix = next((prefix for prefix in PARTS if key.startswith(prefix)), None)
    ending = next((ending for ending in ENDINGS if key.endswith(ending)), None)
    if prefix is None or ending is None:
        return None, key, None
    return PARTS[prefix], key.removeprefix(prefix).removesuffix(ending), ENDINGS[ending]


def half(pair: Mapping[str, Tensor]) -> bool:
    return not {"down", "up"} <= pair.keys() or len(pair["down"]) != pair["up"].shape[1]


def recorded_alphas(file: Path) -> dict[str, float]:
    """Part -> alpha, as newer versions of diffusers record it for all modules alike."""
    told = json.loads(read_header(file)[1].get(METADATA, "{}"))
    odd = [
        key
        for key, value in told.items()
        if key.rpartition(".")[2] in ("use_dora", "use_rslora", "alpha_pattern") and value
    ]
    if odd:
        raise UserError(f"{file} is a LoRA with {odd[0]} = {told[odd[0]]}, which is not read here.")
    ending = ".lora_alpha"
    return {
        key.removesuffix(ending): float(value)
        for key, value in told.items()
        if key.endswith(ending)
    }


@torch.no_grad()
def add_changes(
    weights: Mapping[str, Tensor], changes: Changes, scale: float, source: Path, what: str
) -> None:
    """Adds them in place, `scale` times.

    what: the network is, for the message.
    """
    modules = {name.removesuffix(".weight"): name for name in weights if name.endswith(".weight")}
    modules |= {module.replace(".", "_"): name for module, name in modules.items()}
    for module, low_rank in changes.items():
        weight = weights.get(modules.get(module, ""))
        shape = (len(low_rank.up), low_rank.down[0].numel())
        if weight is None or (len(weight), weight[0].numel()) != shape:
            told = "there is none" if weight is None else f"that is {tuple(weight.shape)} here"
            raise UserError(
                f"{source} does not fit {what}: it changes a matrix of {shape} in {module}, and "
                f"{told}. A LoRA goes with models of the architecture that it was trained on."
            )
    for module, low_rank in changes.items():
        weight = weights[modules[module]]
        change = scale * low_rank.change().to(weight.device)
        weight.copy_((weight.float() + change.view_as(weight)).to(weight.dtype))


def write_lora(
    folder: Path, parts: Mapping[str, Changes], provenance: Mapping[str, Any], card: str
) -> None:
    """The file of weights, what they were trained from and how, and their card."""
    tensors = {}
    for part, changes in parts.items():
        for module, low_rank in changes.items():
            scale = 1 if low_rank.alpha is None else low_rank.alpha / len(low_rank.down)
            tensors[f"{part}.{module}.lora_A.weight"] = low_rank.down
            tensors[f"{part}.{module}.lora_B.weight"] = low_rank.up * scale
    header = {"format": "pt", "latentsmith": json.dumps(provenance)}
    texts = {PROVENANCE: json.dumps({"provenance": provenance}, indent=2) + "\n", "README.md": card}
    write_files(folder, WEIGHTS, tensors, header, texts)
