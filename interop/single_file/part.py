"""A part of the model in a single file, by the names that it has in a folder."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from interop.key_mapping import Shape
from interop.safetensors_io import in_memory, require

Renaming = Callable[[Mapping[str, Any]], Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Part:
    """config.json's entries, and weights; with what else a message about them needs."""

    source: Path
    what: str  # it is
    config: dict[str, Any]
    weights: dict[str, Tensor]
    stored: Mapping[str, str]  # name in a folder -> in the file
    prefix: str  # of its names in the file
    bare: Renaming  # names in a folder -> in such files, without the prefix
    around: Mapping[str, Shape]  # of all that is in the file

    def fit(self, expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The weights in the precision of `expected`, whose names and shapes they must have."""
        names = self.bare({name: name for name in expected})
        called = {name: self.prefix + bare for bare, name in names.items()} | self.stored
        found, needed = (
            {called.get(name, name): value for name, value in weights.items()}
            for weights in (self.weights, expected)
        )
        require(found, needed, self.source, self.what, self.around)
        require(self.weights, expected, self.source, self.what)  # should two names have become one
        return {
            name: in_memory(value, expected[name].dtype) for name, value in self.weights.items()
        }
