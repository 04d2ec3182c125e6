"""Read weights files and folders whole or not at all; write them so that a kill never shows.

Formats: safetensors, which contain nothing but tensors, and pickles (.ckpt) as far as
`interop.ckpt` reads them. The same weights and metadata are always written as the same bytes.
"""

import json
import os
import re
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from foundation.errors import MissingFileError, UserError
from foundation.files import atomic_file, atomic_folder, read_json, restore
from foundation.json_reading import load_object
from interop.ckpt import PICKLES, read_pickle
from interop.key_mapping import Shape
from interop.state_dict_check import damage_hint

SHARD = re.compile(r"-\d+-of-\d+")


# One file -----------------------------------------------------------------------------------------


def read_tensors(file: Path, keep: Callable[[str], bool] | None = None) -> dict[str, Tensor]:
    """Read the tensors of a .safetensors or .ckpt file, in the precision in which they are stored.

    keep: chooses tensors by name; the others of a safetensors file are not read.

    Raises:
        MissingFileError: there is no such file.
        UserError: it is damaged, contains code, or is not a weights file.
    """
    if not file.is_file():
        raise MissingFileError(f"there is no file {file}.")
    if file.suffix == ".safetensors":
        with open_safetensors(file) as stored:
            return {
                name: stored.get_tensor(name)
                for name in stored.keys()  # noqa: SIM118 (it is not a mapping)
                if keep is None or keep(name)
            }
    if file.suffix not in PICKLES:
        endings = ", ".join([".safetensors", *PICKLES])
        raise UserError(f"{file} is not a weights file; their names end in {endings}.")
    tensors = read_pickle(file)
    return {name: tensor for name, tensor in tensors.items() if keep is None or keep(name)}


def read_header(file: Path) -> tuple[dict[str, Shape], dict[str, str]]:
    """Read the shapes by name, and the metadata, without the tensors of a safetensors file."""
    if file.suffix != ".safetensors":
        return {name: tuple(tensor.shape) for name, tensor in read_tensors(file).items()}, {}
    with open_safetensors(file) as stored:
        names = stored.keys()
        shapes = {name: tuple(stored.get_slice(name).get_shape()) for name in names}
        return shapes, stored.metadata() or {}


@contextmanager
def open_safetensors(file: Path) -> Generator[Any, None, None]:
    """Context manager: open a safetensors file; damage becomes a UserError that describes it."""
    try:
        with safe_open(file, framework="pt") as stored:
            yield stored
    except SafetensorError as error:
        raise UserError(
            f"{file} is damaged, or not a safetensors file ({error}). {damage_hint(file)} "
            "Copy or download it again."
        ) from None


def write_tensors(file: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write one safetensors file, atomically."""
    with atomic_file(file) as partial:
        save_tensors(partial, tensors, metadata)


def save_tensors(file: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file whose metadata are sorted, so that equal content is equal bytes."""
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(contiguous, file, metadata=dict(metadata))
    share(file)
    sort_metadata(file)


def share(file: Path) -> None:
    """Give a file the mode that the umask says, as every new file has it.

    safetensors makes its files for their owner alone, so that another user, a server or a container
    could not read them.
    """
    mask = os.umask(0o077)  # there is no way to read it without setting it
    os.umask(mask)
    file.chmod(0o666 & ~mask)


def sort_metadata(file: Path) -> None:
    """Sort the metadata in a file's header, because safetensors writes them in random order."""
    with open(file, "r+b") as stream:
        length = int.from_bytes(stream.read(8), "little")
        header = load_object(stream.read(length), file, raw_bytes=True)
        if "__metadata__" not in header:
            return
        header = {"__metadata__": dict(sorted(header.pop("__metadata__").items())), **header}
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        assert len(text) <= length, "safetensors writes JSON in another way than expected"
        stream.seek(8)
        stream.write(text.ljust(length))  # the format pads with spaces, too


def aligned_copy(stored: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Copy a tensor that was read from a file to memory that torch allocates, in 64-byte units.

    Tensors of a file begin wherever its header ends. Sums over numbers at another alignment are
    rounded differently, so the same weights from another file would give slightly different images.
    """
    return stored.to(dtype, copy=True)


# Folders ------------------------------------------------------------------------------------------


def find_weights(candidates: Sequence[Path], stem: str) -> Path | None:
    """Return the first folder that contains weights.

    A folder whose replacement was interrupted (see `foundation.files.restore`) is restored first.
    """
    for folder in candidates:
        restore(folder.absolute().parent, folder)
        if has_weights(folder, stem):
            return folder
    return None


def has_weights(folder: Path, stem: str) -> bool:
    """Return whether a folder contains weights in any variant, such as stem.safetensors."""
    return bool(find_variants(folder, stem))


def find_variants(folder: Path, stem: str) -> dict[str, Path]:
    """Return variant -> its file, or the index of its shards; the plain weights are variant ""."""
    variants: dict[str, Path] = {}
    for path in sorted(folder.glob(f"{stem}.*")):
        ending = path.name.removeprefix(stem)
        if SHARD.search(ending):
            continue
        if single := re.fullmatch(r"(?:\.([^.]+))?\.safetensors", ending):
            variants[single[1] or ""] = path
        elif index := re.fullmatch(r"\.safetensors\.index(?:\.([^.]+))?\.json", ending):
            variants.setdefault(index[1] or "", path)
    return variants


def weights_file(folder: Path, stem: str) -> Path:
    """Return the file or index that `read_folder` reads: the plain weights, or the only variant.

    Raises:
        MissingFileError: there are no weights.
        UserError: there are several variants, and none is the plain one.
    """
    variants = find_variants(folder, stem)
    if "" in variants:
        return variants[""]
    if len(variants) == 1:
        return next(iter(variants.values()))
    if variants:
        raise UserError(
            f"{folder} contains {len(variants)} variants of the weights and no {stem}.safetensors: "
            f"{', '.join(path.name for path in variants.values())}. Rename the one to use to "
            f"{stem}.safetensors, or move the others away."
        )
    raise MissingFileError(
        f"there is no {stem}.safetensors in {folder}.{pickle_hint(stem, folder)} Copy or download "
        "it."
    )


def pickle_hint(stem: str, *folders: Path) -> str:
    """Return a sentence that names pickled weights where safetensors are expected, or ""."""
    paths = [path for folder in folders for path in sorted(folder.glob(f"*{stem}*"))]
    pickles = [path for path in paths if path.suffix in PICKLES]
    if not pickles:
        return ""
    return f" There is {pickles[0]}, but in folders only safetensors are read, never pickles."


def read_folder(folder: Path, stem: str) -> dict[str, Tensor]:
    """Read all weights of a folder, from one file or from shards, in their stored precision."""
    source = weights_file(folder, stem)
    if source.suffix == ".safetensors":
        return read_tensors(source)
    weights: dict[str, Tensor] = {}
    for name in shard_names(source):
        if not (folder / name).is_file():
            raise MissingFileError(
                f"{folder / name} is missing, though {source.name} in the same folder names it. "
                "Copy or download the whole folder again."
            )
        shard = read_tensors(folder / name)
        if duplicates := sorted(weights.keys() & shard.keys()):
            raise UserError(f"{source}: {duplicates[0]} is in two of the shards that it names.")
        weights |= shard
    return weights


def shard_names(index: Path) -> list[str]:
    """Return the file names of the shards that an index lists."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(
        isinstance(name, str) and Path(name).name == name for name in weight_map.values()
    ):
        raise UserError(
            f"{index} is not an index of shards: it has no weight_map from names of tensors to "
            "names of files in the same folder. Copy or download it again."
        )
    return sorted(set(weight_map.values()))


def write_weights_folder(
    folder: Path,
    weights: str,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    texts: Mapping[str, str],
) -> None:
    """Write a weights file and the text files that belong to it, atomically as a whole.

    A kill or a full disk leaves the old folder or the new one. Other files in the folder stay.

    Args:
        weights: name of the safetensors file.
        texts: file name -> content.
    """
    with atomic_folder(folder, keep_others=True) as partial:
        save_tensors(partial / weights, tensors, metadata)
        for name, text in texts.items():
            (partial / name).write_text(text, encoding="utf-8", newline="\n")
