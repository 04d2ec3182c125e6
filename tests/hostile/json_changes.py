"""Every entry of a JSON object in turn as something else, and what must come of it."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from foundation.errors import UserError
from tests.helpers.hostile import MESSAGE

VALUES: list[Any] = [None, True, False, 0, -1, 1.5, 10**9, 10**30, "", "3", "false", "x" * 20_000]
VALUES += [[], [None], ["a"], [10**9] * 3, {}, {"a": 1}]
TEXTS = ["", "null", "[]", '"x"', "{", "[" * 100_000, '{"a":' * 100_000, '{"a": NaN}', "{}\0"]
TEXTS += ['{"a": 1, "a": 2}', '{"a": 1e999}', '{"a": "\\ud800"}', "\ufeff{", "9" * 5000]


def changed_objects(content: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (what was changed, the object with that change): each entry missing and as VALUES.

    Nested objects, and the first objects of lists, are changed inside, too.
    """
    for name, value in content.items():
        rest = {key: each for key, each in content.items() if key != name}
        yield f"{prefix}{name} missing", rest
        for other in VALUES:
            if type(other) is not type(value) or other != value:
                yield f"{prefix}{name} = {str(other)[:20]}", {**content, name: other}
        inner = value[0] if isinstance(value, list) and value else value
        if isinstance(inner, dict) and len(inner) < 50:
            for what, new in changed_objects(inner, f"{prefix}{name}."):
                yield what, {**content, name: [new, *value[1:]] if inner is not value else new}


def faults_of_reader(read: Callable[[], object], name: str) -> str | None:
    """Read a file; return None if it was accepted, "" if it was refused well, else the fault."""
    try:
        read()
    except UserError as error:
        message = str(error)
        if len(message) > MESSAGE:
            return f"a message of {len(message)} characters"
        return "" if name in message else f"the message names no file: {message}"
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:300]}"
    return None


def read_changed(
    file: Path, read: Callable[[], object], name: str, every: int = 1
) -> tuple[int, list[str]]:
    """Read a JSON file with each change; return how many there were, and the faults.

    Args:
        read: reads the file, or what it belongs to.
        name: must be in every message.
        every: take only each so many-th change.
    """
    original = file.read_text(encoding="utf-8")
    changes = [(what, json.dumps(new)) for what, new in changed_objects(json.loads(original))]
    changes += [(text[:20], text) for text in TEXTS]
    faults = []
    for what, text in changes[::every]:
        file.write_text(text, encoding="utf-8", errors="surrogatepass")
        if fault := faults_of_reader(read, name):
            faults.append(f"{what}: {fault}")
    file.write_text(original, encoding="utf-8")
    return len(changes[::every]), faults
