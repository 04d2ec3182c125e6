"""What two codebases call the same weights: tables of module names, applied either way."""

from collections.abc import Mapping
from typing import TypeVar

from foundation.errors import UserError

Value = TypeVar("Value")  # a tensor, or only its shape
Shape = tuple[int, ...]


def renamed(weights: Mapping[str, Value], table: Mapping[str, str]) -> dict[str, Value]:
    """All weights, by their other names.

    table: of modules. The longest beginning of a name that is in it is replaced; a name of which
        nothing is in it stays as it is, for the comparison with the network to refuse.
    """
    return {other_name(name, table): value for name, value in weights.items()}


def other_name(name: str, table: Mapping[str, str]) -> str:
    module, rest = name, ""
    while module not in table:
        module, dot, last = module.rpartition(".")
        if not dot:
            return name
        rest = f".{last}{rest}"
    return table[module] + rest


def inverted(table: Mapping[str, str]) -> dict[str, str]:
    return {theirs: ours for ours, theirs in table.items()}


def size(shapes: Mapping[str, Shape], name: str, axis: int) -> int:
    """Of a weight that must be there, and have that many axes, for anything to be told."""
    if name not in shapes or len(shapes[name]) <= axis:
        raise UserError(f"{name} is missing or has another shape than it could have")
    return shapes[name][axis]
