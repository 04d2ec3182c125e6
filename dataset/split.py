"""Pairs to train on, and pairs held out to judge by."""

from dataset.folder import Folder
from dataset.table import Pairs
from foundation.errors import UserError


def split(folder: Folder, fraction: float) -> tuple[Pairs, Pairs]:
    """(train, held out), where about `fraction` of the pairs is held out, and at least one.

    An image goes to one side by a hash of its relative name. So the split is the same in every
    stage, on every machine, and images added later move none of the earlier ones.
    """
    if not 0 <= fraction < 1:
        raise UserError(f"the held-out fraction is {fraction}; it must lie in [0, 1).")
    if fraction == 0:
        return folder.pairs, folder.pairs[:0]
    if len(folder.pairs) < 2:
        raise UserError(
            f"{folder.root} has {len(folder.pairs)} image; holding one out leaves none to train "
            "on. Add images, or hold out nothing: --held-out 0."
        )
    places = folder.pairs.column("place")
    held_out = places < fraction
    if not held_out.any():
        held_out[places.argmin()] = True
    elif held_out.all():
        held_out[places.argmax()] = False
    return folder.pairs.where(~held_out), folder.pairs.where(held_out)
