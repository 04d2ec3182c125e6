"""Versions of what computes the numbers of an evaluation."""

import platform
from importlib.metadata import PackageNotFoundError, version

import torch

from foundation import __version__

LIBRARIES = ("torch-fidelity", "torchmetrics", "open_clip_torch", "lpips", "numpy", "pillow")


def library_versions() -> dict[str, str]:
    """Return name -> version; libraries that are not installed are left out."""
    found = {"latentsmith": __version__, "python": platform.python_version()}
    found["torch"] = torch.__version__
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
