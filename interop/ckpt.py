"""Read tensors from files of torch.save (.ckpt, .pt, .pth, .bin) without running code in them."""

import os
import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from foundation.errors import UserError, one_line
from interop.state_dict_check import damage_hint

PICKLES = (".ckpt", ".pt", ".pth", ".bin")
# CompVis' checkpoints name this class, because Lightning stores callbacks under their classes.
MOST_MEMBERS = 1_000_000
LIGHTNING_CALLBACK = "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint"


class Placeholder:
    """Replaces a class that a checkpoint names, so that its code is neither needed nor run."""


def read_pickle(file: Path) -> dict[str, Tensor]:
    """Read the tensors of a state dict, or of the entry "state_dict" of a checkpoint.

    Raises:
        UserError: the file is damaged, contains code, or contains no tensors.
    """
    is_archive = zipfile.is_zipfile(file)
    if is_archive:
        check_directory(file)
    if is_archive and is_torchscript(file):
        raise UserError(
            f"{file} is a TorchScript archive, the format in which OpenAI first released CLIP. It "
            "contains code, which is never run. Use the same weights as safetensors; for CLIP "
            "ViT-L/14 that is open_clip_model.safetensors of "
            "https://huggingface.co/timm/vit_large_patch14_clip_224.openai."
        )
    try:
        with torch.serialization.safe_globals([(Placeholder, LIGHTNING_CALLBACK)]):
            content = torch.load(file, map_location="cpu", weights_only=True, mmap=is_archive)
    except Exception as error:  # a damaged pickle can raise any exception
        if code := re.search(r"GLOBAL (\S+)", str(error)):
            raise UserError(
                f"{file} contains code, not only tensors: it calls {code[1]}. None of it was run. "
                "Use the same weights as .safetensors."
            ) from None
        # Only the end of torch's message: the rest recommends to run the code.
        reason = str(error).rpartition("WeightsUnpickler error: ")[2].strip().split("\n")[0]
        raise UserError(
            f"{file} is damaged, or not a file of torch.save ({reason or type(error).__name__}). "
            f"{damage_hint(file)} Copy or download it again."
        ) from None
    return named_tensors(file, content)


def check_directory(archive: Path) -> None:
    """Refuse an archive that unpacks to more than its own size: torch.save never compresses.

    Raises:
        UserError: a member is compressed, or the members are larger than the file.
    """
    try:
        with zipfile.ZipFile(archive) as content:
            members = content.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, UnicodeError) as error:
        raise UserError(
            f"{archive} is damaged: the directory of the archive cannot be read "
            f"({one_line(error, 200)}). Copy or download it again."
        ) from None
    unpacked, size = sum(member.file_size for member in members), archive.stat().st_size
    if unpacked > size or len(members) > MOST_MEMBERS:
        raise UserError(
            f"{archive} has {size:,} bytes and would unpack to {unpacked:,} in {len(members):,} "
            "members. Archives of torch.save are not compressed, so it is none of them, or made "
            "to fill the memory."
        )


def is_torchscript(archive: Path) -> bool:
    """Return whether a zip archive has the file that only TorchScript writes."""
    with zipfile.ZipFile(archive) as content:
        return any(os.path.basename(name) == "constants.pkl" for name in content.namelist())


def named_tensors(file: Path, content: Any) -> dict[str, Tensor]:
    """Return the tensors of a state dict or checkpoint, without gradients.

    Raises:
        UserError: there are none.
    """
    entries: dict[Any, Any] = content if isinstance(content, dict) else {}
    state_dict = entries.get("state_dict", entries)
    items: dict[Any, Any] = state_dict if isinstance(state_dict, dict) else {}
    tensors = {
        name: value.detach()
        for name, value in items.items()
        if isinstance(name, str) and isinstance(value, Tensor)
    }
    if not tensors:
        summary = ", ".join(str(key) for key in list(entries)[:5]) or type(content).__name__
        hint = " It seems to be the state of an optimizer." * ("param_groups" in entries)
        raise UserError(f"{file} contains no named tensors, only {summary}.{hint}")
    return tensors
