"""The models that the page offers, and those of them that are open."""

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from autoencoder import Autoencoder
from dataset.images.pixel_format import PixelFormat, recorded_format
from foundation.errors import UserError
from generation.limits import MAX_GUIDANCE
from generation.metadata import last_part, lora_record
from generation.session import GenerationSession
from stages.evaluation.reconstruction import autoencoder_provenance
from stages.lora import LORA, apply_lora
from web.model_facts import ModelFacts, look_at
from web.model_lists import find_autoencoders, find_loras, find_models, find_weak_models, pick

MOST_OPEN = 2  # models that stay in memory


@dataclass(frozen=True)
class ModelChoice:
    """A model of the list, and the LoRA that is added to it, if any."""

    name: str
    lora: str = ""  # name of the list; empty: none
    lora_scale: float = 1.0

    @classmethod
    def of(cls, name: str, lora: str | None, lora_scale: float | None) -> "ModelChoice":
        """Return a choice as a form has it; without a LoRA its scale does not matter.

        Raises:
            UserError: the scale is no number, or out of bounds.
        """
        if not lora:
            return cls(name)
        if lora_scale is None or not abs(lora_scale) <= MAX_GUIDANCE:
            raise UserError(
                f"the scale of the LoRA is {lora_scale}; it must be a number from -{MAX_GUIDANCE} "
                f"to {MAX_GUIDANCE}."
            )
        return cls(name, lora, float(lora_scale))

    @property
    def flags(self) -> dict[str, Any]:
        """Flags of sample.py for it, besides `model`."""
        if not self.lora:
            return {}
        scale = {} if self.lora_scale == 1 else {"lora_scale": self.lora_scale}
        return {"lora": self.lora, **scale}


@dataclass
class OpenModels:
    """Opens models by name, and keeps the last ones. One thread at a time may use it."""

    first: Sequence[Path]
    runs: Path
    device: torch.device
    dtype: str = "fp32"
    opened: OrderedDict[ModelChoice, GenerationSession] = field(default_factory=OrderedDict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def known(self) -> dict[str, Path]:
        return find_models(self.first, self.runs)

    def names(self) -> list[str]:
        return list(self.known())

    def lora_names(self) -> list[str]:
        return list(find_loras(self.runs))

    def weak_names(self) -> list[str]:
        return list(find_weak_models(self.runs))

    def weak_model(self, name: str | None) -> Path | None:
        """Return the path of a weak model; None for no name.

        Raises:
            UserError: the page does not offer it.
        """
        return pick(find_weak_models(self.runs), name, "weak model") if name else None

    def facts(self, name: str) -> ModelFacts:
        """Return what a model does and reads; unknown if there is none of this name."""
        path = self.known().get(name)
        return ModelFacts() if path is None else look_at(path)

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
            sessions = [each for choice, each in self.opened.items() if choice.name == name]
        if not sessions:
            return recorded == last_part(Path(name))
        own = {part: value for part, value in sessions[0].hashes.items() if part != LORA}
        return all(hashes.get(part) == value for part, value in own.items())

    def open(self, choice: ModelChoice) -> GenerationSession:
        """Return a model.

        Raises:
            UserError: the page does not offer it or its LoRA, or it cannot be opened.
        """
        model = pick(self.known(), choice.name, "model")
        added: dict[str, Any] = {}
        if choice.lora:
            lora = pick(find_loras(self.runs), choice.lora, "LoRA")
            added["extra_record"] = lora_record(lora, choice.lora_scale)
            added["modify"] = partial(apply_lora, source=lora, scale=choice.lora_scale)
        with self.lock:
            if choice not in self.opened:
                self.opened[choice] = GenerationSession(
                    model, self.device, dtype=self.dtype, **added
                )
            self.opened.move_to_end(choice)
            while len(self.opened) > MOST_OPEN:
                self.opened.popitem(last=False)
            return self.opened[choice]


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
        path = pick(known, name, "autoencoder")
        if self.last is None or self.last[0] != name:
            autoencoder = Autoencoder.load(path, self.models.device)
            pixels = recorded_format(autoencoder_provenance(path))
            self.last = name, autoencoder, pixels
        return self.last[1:]
