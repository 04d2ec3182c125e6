"""Configs as JSON: from a dataclass to what a run folder stores, and back.

This is the only place that converts them. Fields that have been renamed keep working: here in the
files of runs that were begun before, and in training/cli.py as flags.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import cattrs

import foundation.json_reading

Config = TypeVar("Config")

# Old name -> name today, of fields of trainings at any depth.
RENAMED = {
    "look_every": "evaluate_every",
    "tokens": "context_length",
}

# Flags that are gone -> why, and what to do instead.
SOFTENED = (
    "a judge that learns from softened images forgives samples that are soft. Train one on clean "
    "images of the size that the model draws: train_clip.py --preset judge --size 64."
)
REMOVED = {"augment": SOFTENED, "degrade": SOFTENED}

_converter = cattrs.Converter(unstruct_collection_overrides={tuple: list})
_converter.register_unstructure_hook(Path, Path.as_posix)  # the same on every system


def to_json(config: Any) -> Any:
    """Return a config as JSON holds it: dataclasses as dicts, paths as strings, tuples as lists."""
    return _converter.unstructure(config)


def from_json(
    kind: type[Config], values: Mapping[str, Any], source: object = "config.json"
) -> Config:
    """Return the dataclass that `to_json` converted.

    Other keys are ignored, and a field that `values` lacks gets its default. Old names count.

    source: the file, for messages.
    """
    return foundation.json_reading.from_json(kind, with_current_names(values), source)


def with_current_names(values: Any, renamed: Mapping[str, str] = RENAMED) -> Any:
    """Return JSON with every renamed key under its name of today."""
    if isinstance(values, Mapping):
        return {renamed.get(k, k): with_current_names(v, renamed) for k, v in values.items()}
    return values
