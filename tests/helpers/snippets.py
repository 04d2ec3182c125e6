"""The Python blocks of a Markdown text, and running them as a reader would."""

import re
from pathlib import Path
from typing import Any


def python_blocks(text: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


def run(code: str, names: dict[str, Any] | None = None, **settings: object) -> dict[str, Any]:
    """Executes a block and returns the names it leaves.

    names: left by an earlier block. settings: values for the constants at its top.
    """
    for name, value in settings.items():
        code, count = re.subn(rf"^{name} = .*$", f"{name} = {value!r}", code, flags=re.MULTILINE)
        assert count == 1, f"{name} is set {count} times"
    names = {} if names is None else names
    exec(compile(code, "<snippet>", "exec"), names)
    return names


def run_all(card: Path) -> dict[str, Any]:
    """All blocks of a file, one after the other, each on top of those before."""
    names: dict[str, Any] = {}
    blocks = python_blocks(card.read_text(encoding="utf-8"))
    assert blocks, f"{card} has no Python in it"
    for code in blocks:
        run(code, names)
    return names
