"""`--open`: show a picture or a page with the program that the system has for it."""

import webbrowser
from pathlib import Path


def open_result(file: Path) -> None:
    """Open a file in the browser, which shows pictures and pages; print its path if there is none.

    No window is opened by a command that was not asked for one.
    """
    open_address(file.resolve().as_uri(), str(file))


def open_address(address: str, name: str) -> None:
    """Open an address in the browser; say its name if there is none."""
    try:
        opened = webbrowser.open(address)
    except webbrowser.Error:
        opened = False
    if not opened:
        print(f"note: no browser was found to open {name} with.")
