"""The models that the page offers, and those of them that are open."""

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from autoencoder import Autoencoder
from autoencoder.io import find_model_folder
from dataset.images.pixel_format import PixelFormat, recorded_format
from foundation.errors import MissingFileError, UserError, shown
from generation.metadata import last_part
from generation.session import GenerationSession
from stages.evaluation.reconstruction import autoencoder_provenance
from training.tools.run_folders import places_of_runs

MOST_OPEN = 2  # models that stay in memory
MODEL_FILE = "model_index.json"  # of a pipeline folder


def find_models(first: Sequence[Path], runs: Path) -> dict[str, Path]:
    """List the models by the names that the page shows: those given, then the finished runs.

    Args:
        first: models to list before the others, whatever they are.
        runs: folder whose subfolders, or folders in these, may be runs of train_ldm.py; it need
            not exist.
    """
    finished = [path for path in places_of_runs(runs) if (path / "model" / MODEL_FILE).is_file()]
    return {path.as_posix(): path for path in (*first, *finished)}


@dataclass(frozen=True)
class ModelChoice:
    """A model of the list."""

    name: str

    @property
    def flags(self) -> dict[str, Any]:
        """Flags of sample.py for it, besides `model`."""
        return {}


@dataclass
class OpenModels:
    """Opens models by name, and keeps the last ones. One thread at a time may use it."""

    first: Sequence[Path]
    runs: Path
    device: torch.device
    dtype: str = "fp32"
    opened: OrderedDict[ModelChoice, GenerationSession] = field(default_factory=OrderedDict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def names(self) -> list[str]:
        return list(find_models(self.first, self.runs))

    def forget(self, name: str) -> None:
        """Open the model anew next time: its training may have gone on."""
        with self.lock:
            for choice in [choice for choice in self.opened if choice.name == name]:
                del self.opened[choice]

    @property
    def flags(self) -> dict[str, str]:
        """Flags of sample.py that all models of the page are drawn with."""
        return {} if self.dtype == "fp32" else {"dtype": self.dtype}

    def has_drawn(self, name: str, recorded: str, hashes: Mapping[str, str]) -> bool:
        """Return whether a picture may come from the model of this name.

        Args:
            recorded: the name of the model in the picture's record. It decides unless the model is
                open, since weights are hashed when they are read.
            hashes: sha256 of the parts of the model in that record.
        """
        with self.lock:
            session = self.opened.get(ModelChoice(name))
        if session is None:
            return recorded == last_part(Path(name))
        return all(hashes.get(part) == value for part, value in session.hashes.items())

    def open(self, choice: ModelChoice) -> GenerationSession:
        """Return a model.

        Raises:
            UserError: the page does not offer it, or it cannot be opened.
        """
        known = find_models(self.first, self.runs)
        if choice.name not in known:
            raise UserError(f"there is no model {shown(choice.name)} here. Choose one of the list.")
        with self.lock:
            if choice not in self.opened:
                self.opened[choice] = GenerationSession(
                    known[choice.name], self.device, dtype=self.dtype
                )
            self.opened.move_to_end(choice)
            while len(self.opened) > MOST_OPEN:
                self.opened.popitem(last=False)
            return self.opened[choice]


def find_autoencoders(first: Sequence[Path], runs: Path) -> dict[str, Path]:
    """List what holds an autoencoder by the names that the page shows; see `find_models`."""
    folders = [path for path in places_of_runs(runs) if (path / "model").is_dir()]
    finished = [path for path in folders if holds_autoencoder(path)]
    return {path.as_posix(): path for path in (*first, *finished)}


def holds_autoencoder(folder: Path) -> bool:
    try:
        find_model_folder(folder)
    except MissingFileError:
        return False
    return True


@dataclass
class OpenAutoencoders:
    """Opens autoencoders by name, and keeps the last one. One thread at a time may use it."""

    models: OpenModels
    last: tuple[str, Autoencoder, PixelFormat] | None = None

    def names(self) -> list[str]:
        return list(find_autoencoders(self.models.first, self.models.runs))

    def open(self, name: str) -> tuple[Autoencoder, PixelFormat]:
        """Return the autoencoder of this name, and the format of the images that it was trained on.

        Raises:
            UserError: the page does not offer it, or it cannot be opened.
        """
        known = find_autoencoders(self.models.first, self.models.runs)
        if name not in known:
            raise UserError(f"there is no autoencoder {shown(name)} here. Choose one of the list.")
        if self.last is None or self.last[0] != name:
            autoencoder = Autoencoder.load(known[name], self.models.device)
            pixels = recorded_format(autoencoder_provenance(known[name]))
            self.last = name, autoencoder, pixels
        return self.last[1:]
