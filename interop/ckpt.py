"""Tensors from what torch.save wrote (.ckpt), without ever running what else is in it."""

import os
import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from foundation.errors import UserError
from interop.state_dict_check import visible_damage

PICKLES = (".ckpt", ".pt", ".pth", ".bin")
# Lightning stored its callbacks under their class, so checkpoints of CompVis name this one.
NAMED_IN_CHECKPOINTS = "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint"


class Inert:
    """Stands for a class that a checkpoint names, so that its code is neither needed nor run."""


def read_pickle(file: Path) -> dict[str, Tensor]:
    """The tensors of a state dict, which may lie in a checkpoint under "state_dict".

    Raises:
        ValueError: it is damaged, or holds code or no tensors.
    """
    archive = zipfile.is_zipfile(file)
    if archive and is_torchscript(file):
        raise UserError(
            f"{file} is a TorchScript archive, as OpenAI first released CLIP: it holds code, which "
            "is not run. Take the same weights as safetensors; those of CLIP ViT-L/14 are "
            "open_clip_model.safetensors of "
            "https://huggingface.co/timm/vit_large_patch14_clip_224.openai."
        )
    try:
        with torch.serialization.safe_globals([(Inert, NAMED_IN_CHECKPOINTS)]):
            content = torch.load(file, map_location="cpu", weights_only=True, mmap=archive)
    except Exception as error:  # a damaged pickle can end in any error
        if code := re.search(r"GLOBAL (\S+)", str(error)):
            raise UserError(
                f"{file} holds code besides tensors: it calls for {code[1]}. Nothing of it was "
                "run. Take the same weights as .safetensors."
            ) from None
        # Of a message of torch only its end: the rest recommends to run the code.
        told = str(error).rpartition("WeightsUnpickler error: ")[2].strip().split("\n")[0]
        raise UserError(
            f"{file} is damaged or no file of torch.save ({told or type(error).__name__}). "
            f"{visible_damage(file)} Copy or download it again."
        ) from None
    return named_tensors(file, content)


def is_torchscript(archive: Path) -> bool:
    with zipfile.ZipFile(archive) as content:
        return any(os.path.basename(name) == "constants.pkl" for name in content.namelist())


def named_tensors(file: Path, content: Any) -> dict[str, Tensor]:
    entries = content if isinstance(content, dict) else {}
    state = entries.get("state_dict", entries)
    named = state if isinstance(state, dict) else {}
    tensors = {
        name: value.detach()
        for name, value in named.items()
        if isinstance(name, str) and isinstance(value, Tensor)
    }
    if not tensors:
        held = ", ".join(str(key) for key in list(entries)[:5]) or type(content).__name__
        optimizer = " It seems to be the state of an optimizer." * ("param_groups" in entries)
        raise UserError(f"{file} holds no tensors under their names, only {held}.{optimizer}")
    return tensors
