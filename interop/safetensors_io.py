"""Files and folders of weights: read whole or refused, written so that equal input is equal bytes.

safetensors, which hold nothing but tensors; pickles (.ckpt) as far as `interop.ckpt` reads them.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from foundation.errors import MissingFileError, UserError
from foundation.files import atomic_file, atomic_folder, read_json
from interop.ckpt import PICKLES, read_pickle
from interop.state_dict_check import seems_to_be, visible_damage

SHARD = re.compile(r"-\d+-of-\d+")
LISTED = 3  # keys of each kind that an error message lists


def read_tensors(file: Path, keep: Callable[[str], bool] | None = None) -> dict[str, Tensor]:
    """All tensors of one .safetensors or .ckpt by name, in their stored precision.

    keep: chooses by name; what it leaves out of a safetensors file is not read.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, holds code, or is no weights file.
    """
    if not file.is_file():
        raise MissingFileError(f"there is no file {file}.")
    if file.suffix == ".safetensors":
        with opened(file) as stored:
            return {
                name: stored.get_tensor(name)
                for name in stored.keys()  # noqa: SIM118 (no mapping)
                if keep is None or keep(name)
            }
    if file.suffix not in PICKLES:
        endings = ", ".join([".safetensors", *PICKLES])
        raise UserError(f"{file} is no weights file; those end in {endings}.")
    tensors = read_pickle(file)
    return {name: tensor for name, tensor in tensors.items() if keep is None or keep(name)}


def read_header(file: Path) -> tuple[dict[str, tuple[int, ...]], dict[str, str]]:
    """Shapes by name, and the metadata, without reading the tensors of a safetensors file."""
    if file.suffix != ".safetensors":
        return {name: tuple(tensor.shape) for name, tensor in read_tensors(file).items()}, {}
    with opened(file) as stored:
        names = stored.keys()
        shapes = {name: tuple(stored.get_slice(name).get_shape()) for name in names}
        return shapes, stored.metadata() or {}


@contextmanager
def opened(file: Path) -> Iterator[Any]:
    """A safetensors file, whose damage is told in words."""
    try:
        with safe_open(file, framework="pt") as stored:
            yield stored
    except SafetensorError as error:
        raise UserError(
            f"{file} is damaged or no safetensors file ({error}). {visible_damage(file)} "
            "Copy or download it again."
        ) from None


def has_weights(folder: Path, stem: str) -> bool:
    return bool(stored_variants(folder, stem))


def stored_variants(folder: Path, stem: str) -> dict[str, Path]:
    """Variant -> its one file, or else the index of its shards; the plain one is variant ""."""
    found: dict[str, Path] = {}
    for path in sorted(folder.glob(f"{stem}.*")):
        ending = path.name.removeprefix(stem)
        if SHARD.search(ending):
            continue
        if single := re.fullmatch(r"(?:\.([^.]+))?\.safetensors", ending):
            found[single[1] or ""] = path
        elif index := re.fullmatch(r"\.safetensors\.index(?:\.([^.]+))?\.json", ending):
            found.setdefault(index[1] or "", path)
    return found


def weights_file(folder: Path, stem: str) -> Path:
    """The file or index that `read_folder` reads: the plain weights, or the only variant."""
    found = stored_variants(folder, stem)
    if "" in found or len(found) == 1:
        return found.get("") or next(iter(found.values()))
    if found:
        raise UserError(
            f"{folder} holds {len(found)} variants of the weights and no {stem}.safetensors: "
            f"{', '.join(path.name for path in found.values())}. Rename the one that is meant to "
            f"{stem}.safetensors, or move the others away."
        )
    raise MissingFileError(
        f"there is no {stem}.safetensors in {folder}.{told_of_pickles(stem, folder)} Copy or "
        "download it."
    )


def told_of_pickles(stem: str, *folders: Path) -> str:
    """A sentence with the pickled weights that lie where safetensors are looked for, if any."""
    found = [path for folder in folders for path in sorted(folder.glob(f"*{stem}*"))]
    pickles = [str(path) for path in found if path.suffix in PICKLES]
    if not pickles:
        return ""
    return f" There is {pickles[0]}, but pickles are not opened in folders, only safetensors."


def read_folder(folder: Path, stem: str) -> dict[str, Tensor]:
    """All weights of a folder, in their stored precision: of one file, or of shards."""
    source = weights_file(folder, stem)
    if source.suffix == ".safetensors":
        return read_tensors(source)
    weights: dict[str, Tensor] = {}
    for name in shards(source):
        if not (folder / name).is_file():
            raise MissingFileError(
                f"{folder / name} is missing, though {source.name} beside it names it. Copy or "
                "download the whole folder again."
            )
        shard = read_tensors(folder / name)
        if twice := sorted(weights.keys() & shard.keys()):
            raise UserError(f"{source}: {twice[0]} is in two of the shards that it names.")
        weights |= shard
    return weights


def shards(index: Path) -> list[str]:
    files = read_json(index).get("weight_map")
    if not isinstance(files, dict) or not all(
        isinstance(name, str) and Path(name).name == name for name in files.values()
    ):
        raise UserError(
            f"{index} is no index of shards: there is no weight_map from the tensors' names to "
            "files beside it. Copy or download it again."
        )
    return sorted(set(files.values()))


def require(
    found: Mapping[str, Tensor],
    expected: Mapping[str, Tensor],
    source: Path,
    what: str,
    around: Mapping[str, tuple[int, ...]] | None = None,
) -> None:
    """Refuses weights unless they have exactly the names and shapes of `expected`.

    For the message, source: where they are from; what: they should be; around: shapes of all that
    is there, if it is more.
    """
    both = found.keys() & expected.keys()
    given, needed = ({key: described(w[key]) for key in both} for w in (found, expected))
    faults = {
        "missing": [f"{key} {described(expected[key])}" for key in expected if key not in found],
        "different": [
            f"{key} is {given[key]}, expected {needed[key]}"
            for key in expected
            if key in both and given[key] != needed[key]
        ],
        "unexpected": [f"{key} {described(found[key])}" for key in found if key not in expected],
    }
    count = sum(map(len, faults.values()))
    if count:
        shapes = around or {key: tuple(value.shape) for key, value in found.items()}
        raise UserError(
            f"{source} does not hold {what}. {count} difference{'s' * (count > 1)}, "
            + "; ".join(
                f"{len(keys)} {kind}: {', '.join(keys[:LISTED])}" + ", ..." * (len(keys) > LISTED)
                for kind, keys in faults.items()
                if keys
            )
            + f". It seems to be {seems_to_be(shapes)}."
        )


def described(tensor: Tensor) -> str:
    """The shape, and the type where it is not a floating one, which all may have."""
    shape = str(tuple(tensor.shape))
    return shape if tensor.is_floating_point() else f"{shape} of {tensor.dtype}"


def in_memory(stored: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """A copy of its own, where torch puts tensors: at multiples of 64 bytes.

    One of a file lies wherever the header ends, and sums of numbers that lie otherwise are rounded
    otherwise: the same weights from another file would draw a slightly different picture.
    """
    return stored.to(dtype, copy=True)


def write_tensors(file: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write one safetensors file, atomically; the same input gives the same bytes."""
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with atomic_file(file) as partial:
        save_file(contiguous, partial, metadata=dict(metadata))
        sort_metadata(partial)


def write_files(
    folder: Path,
    weights: str,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    texts: Mapping[str, str],
) -> None:
    """Write a weights file and the texts that belong to it, by file name; all of them or none.

    A crash or a full disk leaves the old folder or the new one; other files in it stay.
    """
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with atomic_folder(folder, keep_others=True) as partial:
        save_file(contiguous, partial / weights, metadata=dict(metadata))
        sort_metadata(partial / weights)
        for name, text in texts.items():
            (partial / name).write_text(text, encoding="utf-8")


def sort_metadata(file: Path) -> None:
    """safetensors writes the metadata in another order each time; here they are sorted."""
    with open(file, "r+b") as stream:
        length = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(length))
        if "__metadata__" not in header:
            return
        header = {"__metadata__": dict(sorted(header.pop("__metadata__").items())), **header}
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        assert len(text) <= length, "safetensors writes JSON in another way than expected"
        stream.seek(8)
        stream.write(text.ljust(length))  # the format pads with spaces, too
