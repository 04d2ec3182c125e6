"""The runs in a folder such as runs/, and which of them are being trained.

It loads no PyTorch: training/tools/sequence.py waits with it for hours.
"""

from collections.abc import Iterator
from pathlib import Path

from foundation.errors import UserError
from foundation.files import read_json
from foundation.run_kind import training_of
from training.run_lock import holder_of

MOST_FOLDERS = 5000  # that are looked at
LARGEST_CONFIG = 2**20  # bytes


def find_runs(root: Path) -> list[Path]:
    """List the run folders in a folder and in its folders, in the order of their names.

    What lies behind links that lead out of the folder is left out, and so are hidden folders.
    """
    found: list[Path] = []
    for folder in folders_in(root, root):
        if script_of(folder) is not None:
            found.append(folder)
        else:
            found += [run for run in folders_in(folder, root) if script_of(run) is not None]
    return found


def places_of_runs(root: Path) -> list[Path]:
    """List the folders where a run or a copied model may lie: those in `root`, and those in these.

    What lies behind links that lead out of it is left out, and so are hidden folders.
    """
    folders = list(folders_in(root, root))
    return sorted([*folders, *(inner for each in folders for inner in folders_in(each, root))])


def folders_in(folder: Path, root: Path) -> Iterator[Path]:
    """Yield the folders in a folder that really lie below `root`, in the order of their names."""
    inside = root.resolve()
    try:
        entries = sorted(folder.iterdir())[:MOST_FOLDERS]
    except OSError:
        return
    for entry in entries:
        if entry.name.startswith(".") or not entry.is_dir():
            continue
        if entry.resolve().is_relative_to(inside):
            yield entry


def script_of(run: Path) -> str | None:
    """Return the script whose run a folder holds, such as "train_vae.py"; None if it is no run."""
    try:
        return training_of(read_json(run / "config.json", {}, LARGEST_CONFIG))
    except (OSError, UserError):
        return None


def find_running(root: Path) -> list[Path]:
    """List the runs in a folder that are being trained."""
    return [run for run in find_runs(root) if holder_of(run) is not None]
