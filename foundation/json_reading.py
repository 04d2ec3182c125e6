"""JSON of unknown origin: from text to checked values, and from values to dataclasses.

All JSON that is read comes through `load_json`, which bounds its depth and refuses what JSON does
not have (NaN, two equal names). What a file means is said by a dataclass, which `from_json` fills:
a boolean is no number, and a number in quotes is none either.
"""

import json
import math
import re
import types
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import (
    Annotated,
    Any,
    Literal,
    TypeVar,
    Union,
    cast,
    get_args,
    get_origin,
    get_type_hints,
)

from foundation.errors import LONGEST_VALUE, UserError, one_line, shown

DEEPEST = 64  # lists and objects inside each other
MOST_LEVELS = 16  # of a network: each halves the sides, so no picture has pixels for more
HALF = re.compile(r"\\u[dD][89a-fA-F]|[\ud800-\udfff]")  # of a Unicode character, perhaps
LARGEST_INTEGER = 2**64  # nothing here counts further; Python's own integers have no end
Filled = TypeVar("Filled")


# From text ----------------------------------------------------------------------------------------


def load_json(text: str | bytes, *, not_finite: bool = False, raw_bytes: bool = False) -> object:
    """Return the value of a JSON text.

    Args:
        not_finite: allow NaN and Infinity, as Python writes them.
        raw_bytes: allow escapes that stand for bytes which are not UTF-8, as paths may have them.

    Raises:
        UserError: it is not JSON, nested too deeply, has a name twice in one object or half of a
            Unicode character. The message continues "<file> ...".
    """
    try:
        if isinstance(text, bytes):
            text = text.decode("utf-8-sig")
        value: object = json.loads(
            text,
            object_pairs_hook=_object_of,
            parse_constant=None if not_finite else _refuse_constant,
            parse_float=None if not_finite else _finite_float,
        )
        _check_depth(value)
    except UserError:
        raise
    except RecursionError:
        raise _too_deep() from None
    except ValueError as error:  # of the syntax, of UTF-8, or of a number with too many digits
        raise UserError(f"is not JSON ({one_line(error, 300)}).") from None
    if HALF.search(text):
        _check_characters(value, raw_bytes)
    return value


def load_object(text: str | bytes, source: object, **allowed: bool) -> dict[str, Any]:
    """Return the value of a JSON text that must be an object.

    Args:
        source: the file, or a place in it, for messages.
        allowed: see `load_json`.

    Raises:
        UserError: see `load_json`; or it is no object. The message names `source`.
    """
    try:
        value = load_json(text, **allowed)
    except UserError as error:
        raise UserError(f"{one_line(source)} {error} Copy or download it again.") from None
    if not isinstance(value, dict):
        raise UserError(
            f"{one_line(source)} holds {kind_of(value)}, and a JSON object is needed there. Copy "
            "or download it again."
        )
    return cast(dict[str, Any], value)


def _object_of(pairs: list[tuple[str, object]]) -> dict[str, object]:
    content = dict(pairs)
    if len(content) < len(pairs):
        counts = Counter(name for name, _ in pairs)
        twice = counts.most_common(1)[0][0]
        raise UserError(f"has {shown(twice)} twice in one object, so it is not clear which counts.")
    return content


def _refuse_constant(name: str) -> None:
    raise UserError(f"has the number {name}, which is not JSON and means nothing here.")


def _finite_float(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise UserError(f"has the number {one_line(digits, 60)}, which is too large.")
    return value


def _too_deep() -> UserError:
    return UserError(f"is nested too deeply: more than {DEEPEST} lists and objects in each other.")


def _check_depth(value: object) -> None:
    level: list[Any] = [[value]]
    for _ in range(DEEPEST + 1):
        level = [child for parent in level for child in _children(parent)]
        if not level:
            return
    raise _too_deep()


def _children(parent: Any) -> list[Any]:
    """Return the lists and objects in a list or an object."""
    items: Any = cast(Any, parent.values()) if type(parent) is dict else parent
    return [item for item in items if type(item) in (dict, list)]


def _check_characters(value: object, raw_bytes: bool) -> None:
    """Refuse halves of surrogate pairs, which no file and no terminal can hold."""
    if isinstance(value, dict):
        for name, child in cast(dict[str, object], value).items():
            _check_characters(name, raw_bytes)
            _check_characters(child, raw_bytes)
    elif isinstance(value, list):
        for child in cast(list[object], value):
            _check_characters(child, raw_bytes)
    elif isinstance(value, str):
        try:
            value.encode("utf-8", "surrogateescape" if raw_bytes else "strict")
        except UnicodeEncodeError as error:
            half = f"\\u{ord(value[error.start]):04x}"
            raise UserError(
                f"has half of a Unicode character ({half}) in {shown(value)}."
            ) from None


# To dataclasses -----------------------------------------------------------------------------------


def from_json(kind: type[Filled], content: Mapping[str, Any], source: object) -> Filled:
    """Return a dataclass filled with JSON.

    Entries that are no fields are ignored; a field that is not there gets its default.

    Args:
        source: the file, or a place in it, for messages.

    Raises:
        UserError: a value has another type than its field, a field without a default is missing,
            or the dataclass refuses the values. The message names `source` and the field.
    """
    try:
        return cast(Filled, _to_dataclass(kind, content, ""))
    except UserError as error:
        raise UserError(f"{one_line(source)}: {error}") from error


def check_type(value: object, kind: Any, source: object, name: str) -> Any:
    """Return a value of JSON as a type annotation has it, for entries that are no dataclass.

    Args:
        kind: such as `dict[str, int]` or `Literal["a", "b"]`.
        source, name: the file and the entry, for messages.

    Raises:
        UserError: it has another type.
    """
    try:
        return convert_value(value, kind, name)
    except UserError as error:
        raise UserError(f"{one_line(source)}: {error}") from None


def kind_of(value: object) -> str:
    """Return what a value of JSON is, in words with an article."""
    names: dict[type, str] = {
        bool: "a boolean",
        int: "an integer",
        float: "a number",
        str: "a string",
    }
    names |= {list: "a list", dict: "an object", type(None): "null"}
    return names.get(type(value), f"a {type(value).__name__}")


def _to_dataclass(kind: Any, content: object, name: str) -> object:
    if not isinstance(content, Mapping):
        raise _wrong_type(content, kind, name)
    entries, prefix = cast(Mapping[str, Any], content), f"{name}." if name else ""
    values: dict[str, object] = {}
    types_of = get_type_hints(kind, include_extras=True)
    for field in fields(kind):
        if not field.init:
            continue
        if field.name in entries:
            hint = types_of[field.name]
            values[field.name] = convert_value(entries[field.name], hint, prefix + field.name)
        elif field.default is MISSING and field.default_factory is MISSING:
            raise UserError(f"{prefix}{field.name} is missing.")
    try:
        return kind(**values)
    except UserError as error:
        raise UserError(f"{prefix[:-1]}: {error}" if prefix else str(error)) from error


def convert_value(value: object, kind: Any, name: str) -> Any:
    """Return a value of JSON as a type annotation has it. A float such as 3.0 is an integer, too.

    name: of the field, for the message.

    Raises:
        UserError: it has another type.
    """
    origin, arguments = get_origin(kind), get_args(kind)
    if kind in (Any, object):
        return value
    if origin is Annotated:
        return convert_value(value, arguments[0], name)
    if origin in (Union, types.UnionType):
        return _convert_union(value, kind, arguments, name)
    if origin is Literal:
        if any(type(value) is type(choice) and value == choice for choice in arguments):
            return value
    elif is_dataclass(kind):
        return _to_dataclass(kind, value, name)
    elif kind is float and type(value) in (int, float):
        return _to_float(cast(float, value), name)
    elif kind is Path and isinstance(value, str):
        if "\0" not in value:
            return Path(value)
    elif kind in (int, str, bool, type(None), None):
        if type(value) is (type(None) if kind is None else kind):
            return _bounded(value, name)
        if kind is int and isinstance(value, float) and value.is_integer():
            return _bounded(int(value), name)
    elif origin in (list, tuple) and isinstance(value, list | tuple):
        if origin is list and _all_plain(cast(Sequence[Any], value), arguments[0]):
            return list(cast(Sequence[Any], value))
        return _convert_list(cast(Sequence[Any], value), kind, name)
    elif kind in (dict, Mapping) and isinstance(value, dict):
        return cast(dict[str, Any], value)
    elif origin in (dict, Mapping) and isinstance(value, dict):
        if _all_plain(cast(dict[str, Any], value).values(), arguments[1]):
            return dict(cast(dict[str, Any], value))
        items = cast(dict[str, Any], value).items()
        return {key: convert_value(item, arguments[1], f"{name}.{key}") for key, item in items}
    raise _wrong_type(cast(object, value), kind, name)


def _all_plain(values: Collection[Any], kind: Any) -> bool:
    """Return whether all values are strings or small integers of this type or one of this union.

    A vocabulary has 50,000 of them, so they are not looked at one by one.
    """
    present: set[type[Any]] = {type(value) for value in values}
    is_union = get_origin(kind) in (Union, types.UnionType)
    if len(present) != 1 or not present & set(get_args(kind) if is_union else [kind]):
        return False
    if present == {int}:
        return max(abs(value) for value in values) <= LARGEST_INTEGER
    return present == {str}


def _convert_union(value: object, kind: Any, members: tuple[Any, ...], name: str) -> Any:
    exact = [member for member in members if type(value) is (get_origin(member) or member)]
    for member in [*exact, *members]:
        try:
            return convert_value(value, member, name)
        except UserError as error:
            # What has the type of a member is told what is wrong with its value, or its parts.
            is_plain = member in exact and type(value) not in (list, dict)
            if is_plain or str(error).startswith((f"{name}[", f"{name}.")):
                raise
    raise _wrong_type(value, kind, name)


def _convert_list(items: Sequence[Any], kind: Any, name: str) -> Any:
    origin: Any = get_origin(kind)
    arguments = get_args(kind)
    if origin is tuple and arguments[-1:] != (...,):
        if len(items) != len(arguments):
            raise UserError(f"{name} has {len(items)} values; {len(arguments)} are needed.")
        inner = arguments
    else:
        inner = arguments[:1] * len(items)
    pairs = enumerate(zip(items, inner, strict=True))
    return cast(Any, origin)(convert_value(item, each, f"{name}[{k}]") for k, (item, each) in pairs)


def _to_float(value: float, name: str) -> float:
    if abs(value) > 1e300:
        raise UserError(f"{name} is {shown(value)}, which is too large.")
    return float(value)


def _bounded(value: Any, name: str) -> Any:
    if type(value) is int and abs(value) > LARGEST_INTEGER:
        raise UserError(f"{name} is {shown(value)}, which is too large.")
    return value


def _wrong_type(value: object, kind: Any, name: str) -> UserError:
    given = kind_of(value) if value is None else f"{as_json(value)} ({kind_of(value)})"
    return UserError(f"{name or 'its content'} is {given}; it must be {_in_words(kind)}.")


def as_json(value: object) -> str:
    """Return a value as it stands in JSON, short and printable."""
    try:
        return one_line(json.dumps(value), LONGEST_VALUE)
    except (ValueError, RecursionError):
        return shown(value)


def _in_words(kind: Any, plural: bool = False) -> str:
    """Return a type annotation in words, such as "a list of integers or null"."""
    origin, arguments = get_origin(kind), get_args(kind)
    plain = {int: "integer", float: "number", str: "string", bool: "boolean", Path: "path"}
    if origin is Annotated:
        return _in_words(arguments[0], plural)
    if origin in (Union, types.UnionType):
        return " or ".join(_in_words(member, plural) for member in arguments)
    if origin is Literal:
        return " or ".join(json.dumps(choice) for choice in arguments)
    if kind in plain:
        word = plain[kind]
        return f"{word}s" if plural else f"{'an' if word[0] in 'aeiou' else 'a'} {word}"
    if kind in (None, type(None)):
        return "null"
    if origin is tuple and ... not in arguments:
        return f"a list of {len(arguments)} {_in_words(arguments[0], plural=True)}"
    if origin in (list, tuple):
        return f"{'lists' if plural else 'a list'} of {_in_words(arguments[0], plural=True)}"
    return "objects" if plural else "an object"


def check_limits(config: Any, limits: Mapping[str, tuple[float, float]]) -> None:
    """Refuse numbers of a config that no network has: they would fill the memory.

    limits: name of a field -> smallest and largest value; of a list, each item is checked, and the
        list has at most MOST_LEVELS.

    Raises:
        UserError: a number lies outside.
    """
    for name, (low, high) in limits.items():
        value: Any = getattr(config, name)
        if value is None:
            continue
        values = cast(tuple[float, ...], value) if isinstance(value, tuple) else (value,)
        if len(values) > MOST_LEVELS:
            raise UserError(f"{name} has {len(values):,} values; {MOST_LEVELS} are the most.")
        for each in values:
            if not low <= each <= high:
                raise UserError(f"{name} is {shown(each)}; it must be from {low:,} to {high:,}.")
