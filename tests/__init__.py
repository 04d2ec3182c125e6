"""Types and shapes are checked while tests run, by jaxtyping's import hook and beartype.

A loop calls a function thousands of times with the same shapes. So of each function, only the first
calls in each test are checked. To check all took more than half of the time of tests/ldm/samplers.
"""

import os
from collections.abc import Callable
from functools import wraps
from types import FunctionType
from typing import Any

import jaxtyping
from beartype import BeartypeConf, beartype

CHECKED = 10  # calls of each function in each test

# beartype as this test run uses it: an int is welcome where a float is asked for (PEP 484).
check = beartype(conf=BeartypeConf(is_pep484_tower=True))
every_call = jaxtyping.jaxtyped


class Test:
    """The number of the test that runs."""

    number = 0


def first_calls(function: Any = None, *, typechecker: Any = None) -> Any:
    """Check the first calls in each test; takes the place of `jaxtyping.jaxtyped` in its hook."""
    if function is None:
        return lambda found: first_calls(found, typechecker=typechecker)
    checked = every_call(function, typechecker=typechecker)
    return counted(function, checked) if isinstance(function, FunctionType) else checked


def counted(function: FunctionType, checked: Callable[..., Any]) -> Callable[..., Any]:
    test, count = -1, 0

    @wraps(function)
    def call(*arguments: Any, **named: Any) -> Any:
        nonlocal test, count
        if test != Test.number:
            test, count = Test.number, 0
        count += 1
        return (checked if count <= CHECKED else function)(*arguments, **named)

    return call


def keep_writes_in_memory() -> None:
    """Skip fsync: what a killed process wrote is kept by the system anyway, and it costs time."""
    os.fsync = lambda descriptor: None


jaxtyping.jaxtyped = first_calls
