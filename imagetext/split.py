"""Pairs to train on, and pairs held out to judge by."""

import hashlib
import os
from unicodedata import normalize

from imagetext.folder import Folder, Pair


def split(folder: Folder, fraction: float) -> tuple[list[Pair], list[Pair]]:
    """(train, held out), where about `fraction` of the pairs is held out, and at least one.

    An image goes to one side by a hash of its relative name. So the split is the same in every
    stage, on every machine, and images added later move none of the earlier ones.
    """
    if not 0 <= fraction < 1:
        raise ValueError(f"the held-out fraction is {fraction}; it must lie in [0, 1).")
    if fraction == 0:
        return list(folder.pairs), []
    if len(folder.pairs) < 2:
        raise ValueError(
            f"{folder.root} has {len(folder.pairs)} image; holding one out leaves none to train "
            "on. Add images, or hold out nothing: --held-out 0."
        )
    places = {pair.path: place(pair, folder) for pair in folder.pairs}
    held_out = [pair for pair in folder.pairs if places[pair.path] < fraction]
    if not held_out:
        held_out = [min(folder.pairs, key=lambda pair: places[pair.path])]
    elif len(held_out) == len(folder.pairs):
        held_out.remove(max(folder.pairs, key=lambda pair: places[pair.path]))
    apart = {pair.path for pair in held_out}
    return [pair for pair in folder.pairs if pair.path not in apart], held_out


def place(pair: Pair, folder: Folder) -> float:
    """A number in [0, 1) that depends on the image's relative name alone."""
    name = normalize("NFC", os.path.relpath(pair.path, folder.root).replace(os.sep, "/"))
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8]) / 2**64
