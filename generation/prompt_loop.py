"""Prompts that are typed one after the other, while the model stays loaded."""

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress

from foundation.errors import UserError
from training.flags import with_flags

HELP = (
    "Type a prompt and press Enter. An empty line draws the last one again with the next seed. "
    "End with Ctrl-D, or Ctrl-Z and Enter on Windows."
)


def is_interactive() -> bool:
    """Return whether somebody types the input and reads the output."""
    # Without a console, as under pythonw, Python has no streams.
    return all(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stdout))


def typed_prompts() -> Iterator[str]:
    """Yield prompts until the end of the input; for an empty line the last one again."""
    with suppress(ImportError):
        import readline  # noqa: F401  # arrow keys, and a history; Windows has its own
    print(HELP)
    prompt = ""
    while True:
        try:
            line = input("prompt> ").strip()
        except EOFError:
            print()
            return
        prompt = line or prompt
        if prompt:
            yield prompt


def draw_typed_prompts(draw: Callable[[str, int], int], flags: Iterable[str]) -> None:
    """Call `draw` for each prompt that is typed; print what is wrong with one, and go on.

    Args:
        draw: takes a prompt and the number of images drawn before it, and returns how many it drew.
        flags: names of parameters that messages show as flags.
    """
    names = list(flags)
    done = 0
    for prompt in typed_prompts():
        try:
            done += draw(prompt, done)
        except UserError as error:
            print(f"error: {with_flags(str(error), names)}", file=sys.stderr)
