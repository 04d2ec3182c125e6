"""What the page offers to choose from: models, weak models, LoRAs and autoencoders.

They are found in the folder of runs, or were given to app.py. A name that somebody sends must stand
in one of these lists; no other path is opened.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from autoencoder.io import find_model_folder
from foundation.errors import MissingFileError, UserError, shown
from generation.autoguidance import EMA_WEIGHTS
from interop.lora import find_lora
from interop.safetensors_io import read_header
from training.tools.run_folders import folders_in, places_of_runs, script_of

MODEL_FILE = "model_index.json"  # of a pipeline folder
MOST_FILES = 500  # in a folder, of which the names are looked at


def find_models(first: Sequence[Path], runs: Path) -> dict[str, Path]:
    """List the models by the names that the page shows: those given, then the finished runs.

    Args:
        first: models to list before the others, whatever they are.
        runs: folder whose subfolders, or folders in these, may be runs of train_ldm.py; it need
            not exist.
    """
    finished = [path for path in places_of_runs(runs) if (path / "model" / MODEL_FILE).is_file()]
    return by_name((*first, *finished))


def find_autoencoders(first: Sequence[Path], runs: Path) -> dict[str, Path]:
    """List what holds an autoencoder by the names that the page shows; see `find_models`."""
    folders = [path for path in places_of_runs(runs) if (path / "model").is_dir()]
    return by_name((*first, *(path for path in folders if holds_autoencoder(path))))


def holds_autoencoder(folder: Path) -> bool:
    try:
        find_model_folder(folder)
    except MissingFileError:
        return False
    return True


def find_weak_models(runs: Path) -> dict[str, Path]:
    """List what may be the weak model of autoguidance: finished runs, and states of any run."""
    found: list[Path] = []
    for run in places_of_runs(runs):
        if (run / "model" / MODEL_FILE).is_file():
            found.append(run)
        if script_of(run) == "train_ldm.py":
            states = folders_in(run / "state", runs)
            found += [state for state in states if (state / EMA_WEIGHTS).is_file()]
    return by_name(found)


def find_loras(runs: Path) -> dict[str, Path]:
    """List LoRAs: runs that trained one, folders that hold one, and files of other programs."""
    places = [path for path in places_of_runs(runs) if path.name != "model"]
    found = [path for path in places if holds_lora(path, runs)]
    listed = {find_lora(path) for path in found}
    for folder in (runs, *folders_in(runs, runs)):
        files = [file for file in weight_files(folder, runs) if file not in listed]
        found += [file for file in files if is_lora(file)]
    return by_name(found)


def holds_lora(folder: Path, runs: Path) -> bool:
    try:
        return is_inside(find_lora(folder), runs)
    except MissingFileError:
        return False


def weight_files(folder: Path, runs: Path) -> Iterator[Path]:
    """Yield the safetensors files in a folder that really lie below `runs`, in their order."""
    try:
        files = sorted(folder.glob("*.safetensors"))[:MOST_FILES]
    except OSError:
        return
    yield from (file for file in files if file.is_file() and is_inside(file, runs))


def is_lora(file: Path) -> bool:
    """Return whether the names of the tensors in a file are those of a LoRA."""
    try:
        names, _ = read_header(file)
    except (UserError, OSError):
        return False
    return any("lora_" in name or ".lora." in name for name in names)


def is_inside(path: Path, folder: Path) -> bool:
    """Return whether a path lies in a folder also once links are followed."""
    return path.resolve().is_relative_to(folder.resolve())


def by_name(paths: Iterable[Path]) -> dict[str, Path]:
    return {path.as_posix(): path for path in paths}


def pick(known: Mapping[str, Path], name: str, kind: str) -> Path:
    """Return the path of a name in a list.

    Raises:
        UserError: it is not there.
    """
    if name not in known:
        raise UserError(f"there is no {kind} {shown(name)} here. Choose one of the list.")
    return known[name]
