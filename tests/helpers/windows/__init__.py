"""A mode in which a process on Linux meets the refusals that it would meet on Windows.

It must not be imported by the code that is tested; `environment` turns it on for a child process.
"""

import os
from pathlib import Path

SWITCH = "LATENTSMITH_AS_WINDOWS"


def environment() -> dict[str, str]:
    """Return environment variables for a child process that begins in this mode.

    Its children are in it, too. Output that is no terminal has an encoding of 256 characters.
    """
    here = str(Path(__file__).parent)
    root = str(Path(__file__).parents[3])
    path = os.pathsep.join([here, root])
    return {**os.environ, "PYTHONPATH": path, "PYTHONIOENCODING": "cp1252", SWITCH: "1"}
