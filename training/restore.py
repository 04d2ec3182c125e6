"""A config as the run folder holds it, back as the dataclass that it was."""

from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

Config = TypeVar("Config")


def restored(kind: type[Config], values: dict[str, Any]) -> Config:
    """Inverse of `training.run.plain` for dataclasses of flags; other keys are left alone.

    A flag that is no part of a run, as --override, gets its default.
    """
    hints = get_type_hints(kind)
    names = [field.name for field in fields(kind) if field.name in values]
    return kind(**{name: typed(hints[name], values[name]) for name in names})


def typed(hint: Any, value: Any) -> Any:
    if is_dataclass(hint):
        return restored(hint, value)
    if isinstance(value, list):
        return tuple(value)
    if isinstance(value, str) and Path in (hint, *get_args(hint)):
        return Path(value)
    return value
