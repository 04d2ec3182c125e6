"""How many contexts of the text encoder a U-Net reads, one after the other: as it was trained.

Stable Diffusion reads one, and so does a model that does not say. It is recorded in
latentsmith.json of the model folder and of its U-Net, and in the header of a single file.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from foundation.errors import UserError

TEXT_CHUNKS = "text_chunks"  # as which it is recorded


def recorded(facts: Mapping[str, Any], source: Path) -> int:
    """source: where the facts come from."""
    chunks = facts.get(TEXT_CHUNKS, 1)
    if type(chunks) is not int or chunks < 1:
        raise UserError(
            f"{source} says that its U-Net was trained on {chunks!r} contexts of the text encoder "
            f'("{TEXT_CHUNKS}"); it must be a whole number from 1 on. Copy the model again.'
        )
    return chunks
