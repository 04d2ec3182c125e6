"""Find the Python blocks of a Markdown text, and run them as a reader would."""

import re
from pathlib import Path
from typing import Any


def python_blocks(text: str) -> list[str]:
    """Return the code of each fenced block that is marked as Python."""
    return re.findall(r"^```python\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


def run(code: str, names: dict[str, Any] | None = None, **constants: object) -> dict[str, Any]:
    """Execute a block and return the names that it defines.

    Args:
        names: names that an earlier block has defined; new ones are added.
        constants: values that replace those of the constants at the top of the block.
    """
    for name, value in constants.items():
        code, count = re.subn(rf"^{name} = .*$", f"{name} = {value!r}", code, flags=re.MULTILINE)
        assert count == 1, f"{name} is set {count} times"
    names = {} if names is None else names
    exec(compile(code, "<snippet>", "exec"), names)
    return names


def run_all(card: Path) -> dict[str, Any]:
    """Run all blocks of a file in their order, each with the names of those before it."""
    names: dict[str, Any] = {}
    blocks = python_blocks(card.read_text(encoding="utf-8"))
    assert blocks, f"{card} has no Python in it"
    for code in blocks:
        run(code, names)
    return names
