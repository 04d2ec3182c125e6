"""Which numbers a flag takes, said in its type: `steps: Positive[int] = 1000`."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar, get_args, get_type_hints

from foundation.errors import UserError

Number = TypeVar("Number", int, float)


@dataclass(frozen=True)
class Bound:
    """Mark of a type: the numbers for which `holds`, in words. NaN and infinity never do."""

    holds: Callable[[float], bool]
    words: str


Positive = Annotated[Number, Bound(lambda x: x > 0, "above 0")]
NotNegative = Annotated[Number, Bound(lambda x: x >= 0, "0 or more")]
Share = Annotated[float, Bound(lambda x: 0 <= x <= 1, "from 0 to 1")]
Part = Annotated[float, Bound(lambda x: 0 <= x < 1, "0 or more, and below 1")]
Finite = Annotated[float, Bound(lambda x: True, "a finite number")]
Seed = Annotated[int, Bound(lambda x: 0 <= x < 2**63, "from 0 to 2^63 - 1")]


def check_bounds(config: Any, default: Any) -> None:
    """Refuses a dataclass of flags if a number in it is out of the bounds of its type.

    default: has the values that hold when a flag is not given, to be named in the message.
    """
    for name, kind in get_type_hints(type(config), include_extras=True).items():
        value = getattr(config, name)
        for bound in bounds_of(kind):
            if value is not None and not (math.isfinite(value) and bound.holds(value)):
                usual = getattr(default, name)
                raise UserError(
                    f"--{name.replace('_', '-')} is {value}; it must be {bound.words}."
                    + (f" Left out, it is {usual}." if usual is not None else "")
                )


def bounds_of(kind: Any) -> Iterator[Bound]:
    """The bounds of a type, also of one that may be None."""
    yield from (mark for mark in getattr(kind, "__metadata__", ()) if isinstance(mark, Bound))
    for part in get_args(kind):
        yield from bounds_of(part)
